"""From a latency budget to K, with an invented cost model: no clock is read."""

import dataclasses

import numpy as np
import pytest

from edge_atp.config import PipelineConfig
from edge_atp.cost_model import CostModel, Identity, Work, write_calibration
from edge_atp.errors import ConfigError, InvalidQueryError
from edge_atp.latency_budget import LatencyBudget, find_latency_budget
from edge_atp.pipeline import Pipeline
from edge_atp.runtime.running import running
from edge_atp.types import Answer, Frame, Policy, PruneSpec, Query, StageTimes, Status, TokenCounts

IDENTITY = Identity("tiny", "a" * 64, "ort-cpu", "Test CPU, 2 cores")
# 10 ms, 0.1 ms per visual token, 1 ms per token of the answer.
COST = CostModel(
    IDENTITY,
    {
        "preprocess": (0.0,),
        "vision": (10.0,),
        "text": (0.0,),
        "select": (0.0,),
        "project": (0.0, 0.1),
        "prefill": (0.0, 0.0, 0.0),
        "decode": (1.0, 0.0),
    },
    min_kept=16,
    max_kept=256,
    answer_tokens=4,
    method="atp",
)
WORK = Work(num_kept=0, text_tokens=20, answer_tokens=48)


def times(seconds):
    return StageTimes(total=seconds + 5.0, queue_wait=5.0)  # waiting is nobody's cost


def answered(seconds, *, kept=64, generated=4, status=Status.FINAL, method="atp"):
    counts = TokenCounts(256, kept, 20, generated)
    return Answer("", "q", status, (), counts, times(seconds), None, method, "tiny")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("budget_ms", "kept"),
    [
        (20.4, 64),  # 10 + 0.1 * 64 + 4: exactly reached
        (20.39, 63),
        (15.6, 16),
        (1000.0, 256),  # never more than N
        (5.0, 16),  # cannot be met: the fewest tokens that were measured
    ],
)
def test_the_largest_k_within_the_budget(budget_ms, kept):
    assert LatencyBudget(COST).num_kept(budget_ms / 1e3 + 1e-12, "q", WORK, "atp") == kept


def test_no_answer_is_expected_to_be_longer_than_allowed():
    short = dataclasses.replace(WORK, answer_tokens=1)
    assert LatencyBudget(COST).num_kept(0.0204, "q", short, "atp") == 94


def test_a_question_is_expected_to_get_an_answer_as_long_as_before():
    latency = LatencyBudget(COST)
    query = Query("describe the scene.")
    latency.compare(query, answered(0.0364, generated=20), longest=48, num_encoded=1)
    assert latency.expected_tokens(query.text, 48) == 20
    assert latency.expected_tokens("another", 48) == 4
    assert latency.expected_tokens(query.text, 6) == 6
    for _ in range(30):  # and shorter again after shorter ones
        latency.compare(query, answered(0.0214, generated=5), longest=48, num_encoded=1)
    assert latency.expected_tokens(query.text, 48) == 5


def test_a_device_that_became_slower_keeps_fewer_tokens():
    latency = LatencyBudget(COST)
    before = latency.num_kept(0.030, "q", WORK, "atp")
    for _ in range(40):
        latency.compare(Query("q"), answered(2 * 0.0204), longest=48, num_encoded=1)
    assert latency.correction("atp") == pytest.approx(2.0, rel=1e-3)
    # 30 ms corrected by 2 leave 15 ms, less than the 15.6 of the smallest K.
    assert (before, latency.num_kept(0.030, "q", WORK, "atp")) == (160, 16)
    assert latency.correction("cls_topk") == 1.0  # each method has its own


@pytest.mark.parametrize(("seconds", "bound"), [(1e3, 4.0), (1e-6, 0.25)])
def test_the_correction_is_bounded(seconds, bound):
    latency = LatencyBudget(COST)
    for _ in range(100):
        latency.compare(Query("q"), answered(seconds), longest=48, num_encoded=1)
    assert latency.correction("atp") == pytest.approx(bound, rel=1e-6)


def test_one_outlier_moves_a_prediction_by_a_fifth_of_the_way():
    latency = LatencyBudget(COST)
    latency.compare(Query("q"), answered(2 * 0.0204), longest=48, num_encoded=1)
    assert latency.correction("atp") == pytest.approx(1.2)


@pytest.mark.parametrize("status", [Status.CANCELED, Status.EXPIRED, Status.ERROR])
def test_incomplete_answers_teach_nothing(status):
    latency = LatencyBudget(COST)
    done = latency.compare(Query("q"), answered(9.0, status=status), longest=48, num_encoded=1)
    assert latency.correction("atp") == 1.0
    assert done.predicted_s == pytest.approx(0.0204)


def test_closed_answer_sets_teach_nothing():
    latency = LatencyBudget(COST)
    query = Query("q", choices=("yes", "no"))
    latency.compare(query, answered(9.0), longest=48, num_encoded=1)
    assert latency.correction("atp") == 1.0


def test_an_answer_tells_what_was_predicted_before_it_was_given():
    latency = LatencyBudget(COST)
    done = latency.compare(Query("q"), answered(0.05, generated=30), longest=48, num_encoded=1)
    assert done.predicted_s == pytest.approx(0.0204)  # 4 tokens were expected
    shared = latency.compare(Query("r"), answered(0.01), longest=48, num_encoded=0)
    assert shared.predicted_s == pytest.approx(latency.correction("atp") * 0.0104, rel=0.3)


def test_questions_remembered_are_bounded():
    latency = LatencyBudget(COST)
    for number in range(1000):
        latency.compare(Query(f"q{number}"), answered(0.02), longest=48, num_encoded=1)
    assert len(latency._answer_tokens) == 256


def test_without_a_calibration_the_question_is_refused_with_the_way_out():
    latency = find_latency_budget(IDENTITY)
    assert latency.predict_s(WORK, "atp") is None
    with pytest.raises(InvalidQueryError, match=r"LATENCY_BUDGET.*--calibrate.*TOKEN_BUDGET"):
        latency.num_kept(0.1, "q", WORK, "atp")
    # Other questions are none the worse for it.
    assert latency.compare(Query("q"), answered(0.1), 48, 1).predicted_s is None


def test_a_calibration_that_was_asked_for_must_fit(tmp_path):
    path = write_calibration(COST, tmp_path / "calibration.json")
    assert find_latency_budget(IDENTITY, str(path)).cost == COST
    other = dataclasses.replace(IDENTITY, backend="trt")
    with pytest.raises(ConfigError, match=r"calibration: .*backend 'ort-cpu'"):
        find_latency_budget(other, str(path))
    with pytest.raises(ConfigError, match="latency_budget_ms: no calibration"):
        find_latency_budget(other, required=True)


# The pipeline with a calibration ------------------------------------------------------------


@pytest.fixture(scope="module")
def frame():
    return Frame(np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8))


def calibrated(pipeline, config=None):
    directory = pipeline.engine.directory
    identity = running(directory, pipeline.engine.backend)
    cost = dataclasses.replace(COST, identity=identity)
    return Pipeline(pipeline.engine, directory, config or PipelineConfig(), LatencyBudget(cost))


def ask(pipeline, frame, budget_ms):
    spec = PruneSpec(Policy.LATENCY_BUDGET, latency_budget_s=budget_ms / 1e3)
    return pipeline.answer(Query("where is the red box?", max_new_tokens=4, prune=spec), [frame])


def test_a_question_with_a_budget_gets_the_tokens_that_fit(pipeline, frame):
    answer = ask(calibrated(pipeline), frame, 20.41)
    assert answer.tokens.visual_kept == 64
    assert answer.predicted_s == pytest.approx(0.0204)
    assert ask(calibrated(pipeline), frame, 1.0).tokens.visual_kept == 16
    assert ask(calibrated(pipeline), frame, 60e3).tokens.visual_kept == 256


def test_the_default_policy_can_be_a_budget(pipeline, frame):
    # Short of 4 expected tokens: at most 2 may be generated.
    config = PipelineConfig(latency_budget_ms=20.41, max_new_tokens=2)
    answer = calibrated(pipeline, config).answer(Query("where is it?"), [frame])
    assert answer.tokens.visual_kept == 84
    with pytest.raises(ConfigError, match="latency_budget_ms: no calibration"):
        Pipeline(pipeline.engine, pipeline.engine.directory, config)


def test_the_pipeline_finds_its_calibration_by_itself(pipeline, frame, tmp_path):
    directory = pipeline.engine.directory
    identity = running(directory, pipeline.engine.backend)
    path = write_calibration(dataclasses.replace(COST, identity=identity), tmp_path / "c.json")
    config = PipelineConfig(calibration=str(path))
    found = Pipeline(pipeline.engine, directory, config)
    assert ask(found, frame, 20.41).tokens.visual_kept == 64
    assert ask(found, frame, 1e6).predicted_s is not None


def test_a_bad_budget_is_refused_before_any_work(pipeline):
    spec = PruneSpec(Policy.LATENCY_BUDGET, latency_budget_s=0.0)
    with pytest.raises(InvalidQueryError, match=r"prune\.latency_budget is 0"):
        calibrated(pipeline).check(Query("where?", prune=spec))
