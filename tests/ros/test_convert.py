"""Messages <-> the core's types, and errors -> error codes."""

from __future__ import annotations

import array
import math

import numpy as np
import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from builtin_interfaces.msg import Duration, Time
from edge_atp_msgs import msg as msgs
from edge_atp_ros import convert
from edge_atp_ros.error_codes import (
    error_code,
    error_text,
    status,
)
from edge_atp_ros.refusals import (
    CanceledError,
    ExpiredError,
    IdInUseError,
    NoFrameError,
    RejectedError,
    StaleFrameError,
)
from std_msgs.msg import Header

from edge_atp import errors, types

GRID = types.PatchGrid(2, 5)


def header(seconds: int, frame_id: str = "cam") -> Header:
    return Header(stamp=Time(sec=seconds, nanosec=7), frame_id=frame_id)


def core_answer(num_masks: int = 1) -> types.Answer:
    kept = np.array([1, 0, 0, 0, 0, 0, 0, 1, 1, 0], bool)
    mask = types.PatchMask(
        frame=types.Frame(np.zeros((40, 60, 3), np.uint8), camera="front"),
        grid=GRID,
        region=types.SourceRegion(10, 0, 40, 40),
        kept=kept,
        scores=np.arange(10, dtype=np.float32) / 10,
    )
    return types.Answer(
        text="red box",
        query_id="q1",
        status=types.Status.FINAL,
        masks=(mask,) * num_masks,
        tokens=types.TokenCounts(10 * num_masks, 3 * num_masks, 14, 2),
        times=types.StageTimes(frame_age=0.5, preprocess=0.25, total=0.25),
        confidence=0.75,
        confidence_kind=types.ConfidenceKind.MEAN_TOKEN_PROB,
        method="atp",
        model_id="m",
    )


def test_an_answer_carries_everything():
    message = convert.to_answer(core_answer(), [header(5)], ["front"], 3, 9)

    assert (message.header, message.query_id, message.sequence) == (header(5), "q1", 3)
    assert (message.text, message.status) == ("red box", msgs.Answer.STATUS_FINAL)
    assert (message.cameras, message.frame_stamps) == (["front"], [header(5).stamp])
    assert (message.confidence_kind, message.confidence) == (1, 0.75)
    assert message.tokens == msgs.TokenCounts(
        visual_total=10, visual_kept=3, prompt_text=14, generated=2
    )
    assert (message.latency.frame_age, message.latency.preprocess) == (0.5, 0.25)
    assert (message.frames_dropped, message.model_id, message.prune_method) == (9, "m", "atp")
    assert (message.error_code, message.error_msg) == (0, "")


def test_without_confidence_the_kind_says_so():
    from dataclasses import replace

    answer = replace(core_answer(), confidence=None, confidence_kind=types.ConfidenceKind.NONE)
    message = convert.to_answer(answer, [header(1)], ["a"], 0, 0)
    assert (message.confidence_kind, message.confidence) == (msgs.Answer.CONFIDENCE_NONE, 0.0)


def test_the_kind_of_confidence_is_the_messages_own():
    for kind in types.ConfidenceKind:
        assert getattr(msgs.Answer, f"CONFIDENCE_{kind.name}") == kind.value
    from dataclasses import replace

    answer = replace(core_answer(), confidence_kind=types.ConfidenceKind.CHOICE_PROB)
    message = convert.to_answer(answer, [header(1)], ["a"], 0, 0)
    assert message.confidence_kind == msgs.Answer.CONFIDENCE_CHOICE_PROB


def test_choices_and_conversation_reach_the_pipeline():
    query = convert.to_query(msgs.Query(text="x", choices=["a", "b"], conversation_id="c"))
    assert (query.choices, query.conversation_id) == (("a", "b"), "c")


@pytest.mark.parametrize("seconds", [0.0, 0.25, 1.0, 86399.999])
def test_durations_survive_the_round_trip(seconds):
    assert convert.to_seconds(convert.to_duration(seconds)) == pytest.approx(seconds, abs=1e-9)


def test_the_header_of_several_frames_is_the_newest_ones():
    headers = [header(5, "left"), header(9, "right"), header(7, "top")]
    message = convert.to_answer(core_answer(3), headers, ["left", "right", "top"], 0, 0)
    masks = convert.to_mask_array(core_answer(3), headers, 0, with_scores=True)

    assert message.header == masks.header == headers[1]
    assert [stamp.sec for stamp in message.frame_stamps] == [5, 9, 7]
    assert [mask.header for mask in masks.masks] == headers


def test_status_values_are_the_messages_own():
    for value in types.Status:
        assert getattr(msgs.Answer, f"STATUS_{value.name}") == value.value
    for policy in types.Policy:
        assert getattr(msgs.PruneConfig, f"POLICY_{policy.name}") == policy.value


def test_a_mask_is_packed_row_by_row_most_significant_bit_first():
    (mask,) = convert.to_mask_array(core_answer(), [header(1)], 4, with_scores=True).masks

    assert list(mask.kept) == [0b10000001, 0b10000000]
    assert (mask.grid_rows, mask.grid_cols) == (2, 5)
    assert (mask.image_width, mask.image_height) == (60, 40)
    assert (mask.roi.x_offset, mask.roi.y_offset, mask.roi.width, mask.roi.height) == (
        10,
        0,
        40,
        40,
    )
    assert mask.camera == "front"
    np.testing.assert_allclose(mask.scores, np.arange(10) / 10, rtol=1e-6)


def test_scores_are_left_out_on_request():
    (mask,) = convert.to_mask_array(core_answer(), [header(1)], 4, with_scores=False).masks
    assert mask.scores == array.array("f")


def test_a_question_is_taken_over():
    message = msgs.Query(query_id="a", text="why?", max_new_tokens=9, choices=["x"])
    message.prune = msgs.PruneConfig(
        policy=msgs.PruneConfig.POLICY_TOKEN_BUDGET,
        method="random",
        max_visual_tokens=12,
        latency_budget=Duration(sec=1, nanosec=500_000_000),
        alpha=0.25,
    )
    query = convert.to_query(message)

    assert (query.text, query.query_id, query.max_new_tokens) == ("why?", "a", 9)
    assert query.choices == ("x",)
    assert query.prune.policy is types.Policy.TOKEN_BUDGET
    assert (query.prune.method, query.prune.max_visual_tokens) == ("random", 12)
    assert (query.prune.latency_budget_s, query.prune.alpha) == (1.5, 0.25)


def test_a_negative_alpha_means_the_default():
    assert convert.to_prune_spec(msgs.PruneConfig()).alpha is None


@pytest.mark.parametrize(
    ("fields", "reason"), [({"policy": 77}, "policy is 77"), ({"alpha": math.nan}, "alpha is nan")]
)
def test_a_bad_prune_config_is_refused(fields, reason):
    with pytest.raises(errors.InvalidQueryError, match=reason):
        convert.to_prune_spec(msgs.PruneConfig(**fields))


@pytest.mark.parametrize("nanoseconds", [0, 1, 1_500_000_000, 2_000_000_000_123_456_789])
def test_stamps_survive_the_round_trip(nanoseconds):
    assert convert.to_ns(convert.to_stamp(nanoseconds)) == nanoseconds


@pytest.mark.parametrize(
    ("error", "code", "state"),
    [
        (RejectedError("x"), "REJECTED", "ERROR"),
        (IdInUseError("x"), "ID_IN_USE", "ERROR"),
        (CanceledError("x"), "REJECTED", "CANCELED"),
        (NoFrameError("x"), "NO_FRAME", "ERROR"),
        (StaleFrameError("x"), "STALE_FRAME", "ERROR"),
        (ExpiredError("x"), "TIMEOUT", "EXPIRED"),
        (errors.InvalidQueryError("x"), "INVALID_QUERY", "ERROR"),
        (errors.BudgetExceededError("x"), "INVALID_QUERY", "ERROR"),
        (errors.ImageError("x"), "UNSUPPORTED_ENCODING", "ERROR"),
        (errors.OutOfMemoryError("x"), "OUT_OF_MEMORY", "ERROR"),
        (MemoryError(), "OUT_OF_MEMORY", "ERROR"),
        (errors.InferenceError("x"), "BACKEND", "ERROR"),
        (errors.ArtifactError("x"), "BACKEND", "ERROR"),
        (ZeroDivisionError("x"), "BACKEND", "ERROR"),
    ],
)
def test_every_error_has_its_code(error, code, state):
    assert error_code(error) == getattr(msgs.Answer, f"ERROR_{code}")
    assert status(error) == getattr(msgs.Answer, f"STATUS_{state}")
    assert error_text(error)


def test_every_error_of_the_core_has_a_code_of_its_own_or_its_parents():
    for name, cls in vars(errors).items():
        if isinstance(cls, type) and issubclass(cls, Exception):
            assert error_code(cls("x")) != msgs.Answer.ERROR_NONE, name


def test_an_unforeseen_error_names_its_class():
    assert error_text(ZeroDivisionError("division by zero")).startswith("ZeroDivisionError: ")
    assert error_text(errors.ImageError("empty")) == "empty"
