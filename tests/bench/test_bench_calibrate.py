"""From measured stages to a cost model; the runs are invented, no clock is read."""

import itertools

import numpy as np
import pytest
from rich.console import Console

from edge_atp.bench import calibrate
from edge_atp.bench.calibrate import check, fit_model, plan_grid, to_sample
from edge_atp.bench.measure import Run
from edge_atp.bench.questions import BUILT_IN, Question
from edge_atp.bench.run import Settings, bench
from edge_atp.bench.stages import STAGES
from edge_atp.config import PipelineConfig
from edge_atp.cost_model import Identity, require_writable
from edge_atp.errors import ArtifactError, ConfigError

IDENTITY = Identity("tiny", "a" * 64, "ort-cpu", "Test CPU, 2 cores")


def device(kept, text, answer, noise=1.0):
    """Stage times of an imaginary device."""
    length = kept + text
    stages = dict.fromkeys(STAGES, 0.0)
    stages |= {
        "preprocess": 2.0,
        "vision": 20.0 * noise,
        "text": 1.0,
        "select": 0.2,
        "project": 0.1 + 0.002 * kept,
        "prefill": (3.0 + 0.1 * length) * noise,
        "decode": 0.9 * answer,
        "other": 0.3,
    }
    return stages


def run(kept, text, answer, noise=1.0):
    stages = device(kept, text, answer, noise)
    total = sum(stages.values())
    tokens = tuple(range(answer))
    return Run(
        total,
        total,
        tokens,
        total,
        total,
        stages_ms=stages,
        visual_kept=kept,
        visual_total=256,
        text_tokens=text,
    )


def grid(keeps, rng):
    combinations = itertools.product(keeps, (12, 30), (1, 4, 9))
    return [
        to_sample([run(*point, noise=rng.uniform(0.97, 1.03)) for _ in range(7)])
        for point in combinations
    ]


def test_a_sample_is_the_median_of_its_runs_and_loses_no_time():
    sample = to_sample([run(64, 20, 4), run(64, 20, 4, noise=50.0), run(64, 20, 4)])
    assert sample.stages_ms["vision"] == 20.0
    assert sum(sample.stages_ms.values()) == pytest.approx(sum(device(64, 20, 4).values()))
    assert (sample.work.num_kept, sample.work.text_tokens, sample.work.answer_tokens) == (64, 20, 4)


def test_the_fitted_model_predicts_points_it_has_not_seen():
    rng = np.random.default_rng(0)
    model = fit_model(IDENTITY, "atp", grid((16, 32, 64, 128, 256), rng), answer_tokens=4)
    assert (model.min_kept, model.max_kept) == (16, 256)
    unseen = grid((48, 96, 192), np.random.default_rng(1))
    assert check(model, unseen)["max_relative"] < 0.05
    expected = sum(device(100, 20, 6).values())
    assert model.predict_ms(20, 6, 100) == pytest.approx(expected, rel=0.05)


def test_an_answer_without_tokens_counts_as_one_step():
    # The end came first: the decode step that found it was still paid for.
    assert to_sample([run(64, 20, 0)]).work.answer_tokens == 1


def test_the_grid_has_every_budget_with_short_and_long_questions_and_answers(timed_pipeline):
    points = plan_grid(timed_pipeline, BUILT_IN, (1.0, 0.25, 0.0001), (1, 8))
    assert sorted({p.num_kept for p in points}) == [1, 64, 256]
    texts = {p.question.text for p in points}
    assert len(texts) == 3  # a short answer's, a caption's, and a longer wording
    assert len(points) == 3 * 3 * 2
    # A method behind an encoder that cuts has fewer to keep.
    fewer = plan_grid(timed_pipeline, BUILT_IN, (1.0, 0.25), (1,), most=144)
    assert {point.num_kept for point in fewer} == {144, 36}


def test_questions_that_do_not_fit_the_model_are_left_out(timed_pipeline):
    endless = Question("where is the red box? " * 60)
    points = plan_grid(timed_pipeline, [endless, BUILT_IN[2]], (1.0,), (1,))
    assert {p.question for p in points} == {BUILT_IN[2]}
    with pytest.raises(ConfigError, match="none of them is short enough"):
        plan_grid(timed_pipeline, [endless], (1.0,), (1,))


def test_a_place_that_cannot_be_written_is_found_before_measuring(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.json").mkdir()
    monkeypatch.setattr(calibrate, "_measured", lambda *arguments: pytest.fail("measured first"))
    for out in (tmp_path / "file" / "a.json", tmp_path / "folder.json"):
        with pytest.raises(ArtifactError, match=r"cannot be written to .*give --out"):
            calibrate.calibrate(PipelineConfig(), Console(quiet=True), out=out)
    with pytest.raises(ConfigError, match=r"--out .*file/bench: cannot be written"):
        bench(Settings(PipelineConfig(), out=tmp_path / "file" / "bench"), Console(quiet=True))
    require_writable(tmp_path / "new" / "a.json")
    assert not list((tmp_path / "new").iterdir())
