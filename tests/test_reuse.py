"""What is not computed twice: the same tokens and patches with and without each reuse."""

import dataclasses

import numpy as np
import pytest

from edge_atp.config import PipelineConfig
from edge_atp.errors import ConfigError
from edge_atp.frame_reuse import FrameMemory
from edge_atp.pipeline import Pipeline
from edge_atp.types import Frame, Policy, PruneSpec, Query

QUESTIONS = ("where is the red box?", "what is the gripper holding?", "describe the scene.")


@pytest.fixture(scope="module")
def frames(cell_images):
    return [Frame(image, stamp_ns=n + 1) for n, image in enumerate(cell_images)]


def configured(pipeline, **settings):
    return Pipeline(pipeline.engine, pipeline.engine.directory, PipelineConfig(**settings))


def result(answer):
    return answer.token_ids, [np.flatnonzero(mask.kept).tolist() for mask in answer.masks]


@pytest.mark.parametrize("keep", [PruneSpec(), PruneSpec(Policy.OFF)])
def test_the_kept_prefix_changes_no_token(float_pipeline, frames, keep):
    with_prefix, without = (
        configured(float_pipeline),
        configured(float_pipeline, reuse_prefix=False),
    )
    for frame in frames:
        for text in QUESTIONS:
            kept = with_prefix.answer(Query(text, prune=keep), [frame])
            anew = without.answer(Query(text, prune=keep), [frame])
            assert result(kept) == result(anew)
            assert kept.confidence == pytest.approx(anew.confidence, abs=1e-4)
            assert anew.reused.kv_tokens == 0
    prefix = float_pipeline.engine.prompt_tokens(QUESTIONS[0], 1).is_image.argmax()
    assert with_prefix.answer(Query(QUESTIONS[0]), [frames[0]]).reused.kv_tokens == 0
    assert with_prefix.answer(Query(QUESTIONS[1]), [frames[0]]).reused.kv_tokens == prefix > 0


def test_answers_do_not_depend_on_what_was_asked_before(pipeline, frames):
    """To the last bit: the prompt is entered in the same parts whether the first one is there."""
    engine = pipeline.engine
    first = pipeline.answer(Query(QUESTIONS[0]), [frames[0]])
    engine.last_logits(np.ones((3, pipeline.manifest.llm.hidden), np.float32))
    fresh = pipeline.answer(Query(QUESTIONS[0]), [frames[0]])
    again = pipeline.answer(Query(QUESTIONS[0]), [frames[0]])
    assert (fresh.reused.kv_tokens, again.reused.kv_tokens > 0) == (0, True)
    assert first.confidence == fresh.confidence == again.confidence
    assert first.token_ids == fresh.token_ids == again.token_ids


def test_a_remembered_question_is_not_embedded_again(pipeline, frames):
    engine = pipeline.engine
    engine.forget_texts()
    fresh = pipeline.answer(Query(QUESTIONS[0]), [frames[0]])
    again = pipeline.answer(Query(QUESTIONS[0]), [frames[0]])
    dense = pipeline.answer(Query(QUESTIONS[0], prune=PruneSpec(Policy.OFF)), [frames[0]])
    assert [a.reused.text_embed for a in (fresh, again, dense)] == [False, True, False]
    assert result(fresh) == result(again)
    assert np.array_equal(fresh.masks[0].scores, again.masks[0].scores)


def test_a_failed_prefill_leaves_nothing_behind(pipeline, frames, monkeypatch):
    expected = result(pipeline.answer(Query(QUESTIONS[0]), [frames[0]]))
    cache = pipeline.engine._kv_cache
    monkeypatch.setattr(cache, "forward", lambda rows: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipeline.answer(Query(QUESTIONS[0]), [frames[0]])
    monkeypatch.undo()
    after = pipeline.answer(Query(QUESTIONS[0]), [frames[0]])
    assert after.reused.kv_tokens == 0
    assert result(after) == expected


@pytest.mark.parametrize(
    ("tolerance", "change", "reused"),
    [
        (-1.0, 0, False),
        (0.0, 0, True),
        (0.0, 1, False),
        (5.0, 5, True),
        (5.0, 6, False),
    ],
)
def test_an_unchanged_frame_is_encoded_once(pipeline, frames, tolerance, change, reused):
    tolerant = configured(pipeline, frame_tolerance=tolerance)
    first = tolerant.answer(Query(QUESTIONS[1]), [frames[0]])
    image = frames[0].image.copy()
    image[8, 16] = np.where(image[8, 16] > 127, image[8, 16] - change, image[8, 16] + change)
    second = tolerant.answer(Query(QUESTIONS[1]), [Frame(image, stamp_ns=9)])
    assert (second.reused.images, second.times.vision_encode == 0.0) == (reused, reused)
    assert second.masks[0].frame.stamp_ns == 9  # about the new frame, whatever was reused
    if change == 0:
        assert result(second) == result(first)


def test_cameras_and_sizes_are_not_taken_for_each_other(pipeline, frames):
    tolerant = configured(pipeline, frame_tolerance=0.0)
    left = tolerant.encode(dataclasses.replace(frames[0], camera="left"))
    assert not left.reused
    assert not tolerant.encode(dataclasses.replace(frames[0], camera="right")).reused
    assert tolerant.encode(dataclasses.replace(frames[0], camera="left")).reused
    smaller = Frame(frames[0].image[:240], camera="left")
    assert not tolerant.encode(smaller).reused


def test_frame_memory_copies_and_is_bounded():
    memory = FrameMemory(0.0)
    image = np.zeros((16, 16, 3), np.uint8)
    memory.remember(Frame(image, camera="a"), "first")
    image[0, 0] = 1  # the owner fills its buffer with the next frame
    assert memory.recall(Frame(image, camera="a")) is None
    for number in range(40):
        memory.remember(Frame(image, camera=f"camera{number}"), str(number))
    held = [memory.recall(Frame(image, camera=f"camera{n}")) for n in range(40)]
    assert held == [None] * 8 + [str(n) for n in range(8, 40)]
    memory.clear()
    assert memory.recall(Frame(image, camera="camera39")) is None


def test_what_was_made_of_a_frame_in_two_ways_is_told_apart():
    memory = FrameMemory(0.0)
    still = Frame(np.zeros((16, 16, 3), np.uint8))
    memory.remember(still, "whole")
    assert memory.recall(still, "cut") is None
    memory.remember(still, "a part", "cut")
    assert (memory.recall(still), memory.recall(still, "cut")) == ("whole", "a part")
    moved = Frame(np.ones((16, 16, 3), np.uint8))
    memory.remember(moved, "the other part", "cut")
    assert (memory.recall(still), memory.recall(still, "cut")) == ("whole", None)


def test_what_is_used_stays_while_others_come_and_go():
    memory = FrameMemory(0.0)
    still = Frame(np.zeros((16, 16, 3), np.uint8))
    memory.remember(still, "whole")
    for budget in range(100):
        memory.remember(still, str(budget), budget)
        assert memory.recall(still) == "whole"
    assert memory.recall(still, 0) is None
    assert memory.recall(still, 99) == "99"


def test_as_many_cameras_as_are_held_keep_several_kinds_each():
    memory = FrameMemory(0.0)
    image = np.zeros((16, 16, 3), np.uint8)
    held = [(Frame(image, camera=f"camera{n}"), kind) for n in range(32) for kind in range(4)]
    for frame, kind in held:
        memory.remember(frame, (frame.camera, kind), kind)
    for frame, kind in held:
        assert memory.recall(frame, kind) == (frame.camera, kind)
    assert memory.recall(held[0][0], 0)  # so camera1 is the one that was used longest ago
    memory.remember(Frame(image, camera="one more"), "new", 0)
    gone = {frame.camera for frame, kind in held if memory.recall(frame, kind) is None}
    assert gone == {"camera1"}


def test_a_budget_that_varies_drives_out_no_other_camera():
    memory = FrameMemory(0.0)
    image = np.zeros((16, 16, 3), np.uint8)
    others = [Frame(image, camera=f"camera{n}") for n in range(31)]
    varied = Frame(image, camera="varied")
    for frame in others:
        memory.remember(frame, frame.camera)
    for budget in range(100):
        memory.remember(varied, budget, budget)
    assert [memory.recall(frame) for frame in others] == [frame.camera for frame in others]
    kept = [memory.recall(varied, budget) for budget in range(100)]
    assert kept == [None] * 96 + [96, 97, 98, 99]


def test_bad_tolerance_is_named():
    with pytest.raises(ConfigError, match=r"frame_tolerance is -0.5; use -1"):
        PipelineConfig(frame_tolerance=-0.5)
