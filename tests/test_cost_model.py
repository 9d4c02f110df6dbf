"""Fitting, predicting and storing the cost of an answer; no clock is read."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from edge_atp.cost_model import (
    STAGE_TERMS,
    CostModel,
    Identity,
    Sample,
    Work,
    calibration_path,
    fit,
    load_calibration,
    nonnegative_least_squares,
    read_calibration,
    write_calibration,
)
from edge_atp.errors import ArtifactError

IDENTITY = Identity("tiny", "a" * 64, "ort-cpu", "Test CPU, 2 cores")
TRUE = {
    "preprocess": (1.5,),
    "vision": (20.0,),
    "text": (1.0,),
    "select": (0.1,),
    "project": (0.2, 0.01),
    "prefill": (2.0, 0.05, 0.0002),
    "decode": (1.2, 0.001),
}


def cost(**changes) -> CostModel:
    fields = {"min_kept": 16, "max_kept": 256, "answer_tokens": 4, "method": "atp", **changes}
    return CostModel(IDENTITY, TRUE, **fields)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_prediction_adds_up_by_hand():
    # S = 64 + 24 = 88 tokens, A = 4.
    work = Work(num_kept=64, text_tokens=24, answer_tokens=4)
    stages = cost().stages_ms(work)
    assert stages["project"] == pytest.approx(0.2 + 0.01 * 64)
    assert stages["prefill"] == pytest.approx(2.0 + 0.05 * 88 + 0.0002 * 88**2)
    assert stages["decode"] == pytest.approx(1.2 * 4 + 0.001 * 4 * (88 + 2))
    assert cost().predict_ms(24, 4, 64) == pytest.approx(sum(stages.values()))


def test_shared_encodings_and_several_images_count():
    one = cost().stages_ms(Work(64, 24, 4))
    two = cost().stages_ms(Work(64, 24, 4, num_images=2, num_encoded=2))
    shared = cost().stages_ms(Work(64, 24, 4, num_images=2, num_encoded=0))
    assert two["vision"] == 2 * one["vision"]
    assert shared["vision"] == shared["preprocess"] == 0.0
    assert two["prefill"] == shared["prefill"] > one["prefill"]
    assert two["text"] == one["text"]


def test_dense_questions_pay_neither_for_text_nor_for_selection():
    stages = cost().stages_ms(Work(256, 24, 4, dense=True))
    assert stages["text"] == stages["select"] == 0.0
    assert stages["vision"] == 20.0


def test_the_fit_finds_the_coefficients_that_made_the_samples():
    samples = [
        Sample(work, cost().stages_ms(work))
        for kept, text, answer in itertools.product((16, 64, 128, 256), (12, 30), (1, 8, 32))
        for work in [Work(kept, text, answer)]
    ]
    found, residuals = fit(samples)
    for stage, expected in TRUE.items():
        assert found[stage] == pytest.approx(expected, rel=1e-6, abs=1e-9), stage
    assert residuals["total"]["rms_ms"] < 1e-4


def test_no_coefficient_is_negative_and_noise_shows_in_the_residuals():
    rng = np.random.default_rng(0)
    samples = []
    for kept in (16, 64, 128, 256) * 5:
        work = Work(kept, 20, 4)
        # Prefill gets cheaper with K here, which a cost model must not believe.
        stages = {**cost().stages_ms(work), "prefill": 30.0 - 0.05 * kept + rng.normal(0, 0.1)}
        samples.append(Sample(work, stages))
    found, residuals = fit(samples)
    assert all(value >= 0 for values in found.values() for value in values)
    assert found["prefill"][1:] == (0.0, 0.0)
    assert residuals["prefill"]["max_relative"] > 0.2


def test_least_squares_with_a_constraint_that_binds():
    # Unconstrained: 3 - 1 x; the best nonnegative line is flat at the mean.
    terms = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    assert nonnegative_least_squares(terms, np.array([3.0, 2.0, 1.0])) == pytest.approx([2.0, 0.0])
    assert nonnegative_least_squares(terms, np.zeros(3)) == pytest.approx([0.0, 0.0])


def test_more_tokens_never_cost_less():
    times = [cost().predict_ms(24, 8, kept) for kept in range(1, 257)]
    assert all(after >= before for before, after in itertools.pairwise(times))


def test_a_calibration_reads_back_as_it_was_written(tmp_path):
    model = cost(created="2026-11-21", residuals={"total": {"rms_ms": 0.1, "max_relative": 0.02}})
    path = write_calibration(model, tmp_path / "deep" / "calibration.json")
    assert read_calibration(path) == model
    assert [f.name for f in path.parent.iterdir()] == ["calibration.json"]


def test_the_usual_place_is_in_the_users_cache_and_names_model_and_backend(tmp_path):
    path = calibration_path(dataclasses.replace(IDENTITY, model_id="a b/c"))
    assert path.parent == tmp_path / "cache" / "edge_atp" / "calibration"
    assert path.name == f"a_b_c-{'a' * 12}-ort-cpu.json"
    assert calibration_path(dataclasses.replace(IDENTITY, num_threads=2)).name.endswith("-t2.json")


def test_without_a_calibration_the_error_says_how_to_make_one():
    with pytest.raises(ArtifactError, match=r"no calibration of tiny on ort-cpu.*--calibrate"):
        load_calibration(IDENTITY)


def test_a_calibration_of_another_backend_in_the_usual_place_is_pointed_out():
    write_calibration(cost(), calibration_path(IDENTITY))
    assert load_calibration(IDENTITY) == cost()
    with pytest.raises(ArtifactError, match=r"there are tiny-aaaaaaaaaaaa-ort-cpu.json"):
        load_calibration(dataclasses.replace(IDENTITY, backend="ort-cuda"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("backend", "trt", "calibrated with backend 'ort-cpu', but this is 'trt'"),
        ("model_sha256", "b" * 64, r"model_sha256 aaaaaaaaaaaa\.\.\., but this is bbbbbbbbbbbb"),
        ("device", "Jetson", "device 'Test CPU, 2 cores', but this is 'Jetson'"),
        ("num_threads", 1, "num_threads 0, but this is 1"),
    ],
)
def test_a_calibration_of_something_else_is_refused(tmp_path, field, value, message):
    path = write_calibration(cost(), tmp_path / "calibration.json")
    with pytest.raises(ArtifactError, match=message):
        load_calibration(dataclasses.replace(IDENTITY, **{field: value}), path)


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 99},
        {"terms": {}},
        {"coefficients": {**TRUE, "decode": [1.0]}},
        {"coefficients": {**TRUE, "vision": [-1.0]}},
        {"coefficients": {**TRUE, "vision": [float("nan")]}},
        {"identity": {"model_id": "tiny"}},
    ],
)
def test_a_damaged_calibration_is_refused(tmp_path, change):
    path = write_calibration(cost(), tmp_path / "calibration.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ArtifactError, match=r"calibration\.json.*--calibrate"):
        read_calibration(path)


def test_a_file_that_is_no_json_or_not_writable_is_an_error_with_a_remedy(tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text("{")
    with pytest.raises(ArtifactError, match="no calibration"):
        read_calibration(path)
    with pytest.raises(ArtifactError, match="XDG_CACHE_HOME"):
        write_calibration(cost(), path / "below_a_file.json")


def test_every_stage_has_terms_and_coefficients():
    assert set(TRUE) == set(STAGE_TERMS)
