"""The whole path from frame and question to answer and mask, on the shipped model."""

import dataclasses
import itertools

import numpy as np
import pytest

from edge_atp import pruning
from edge_atp.config import PipelineConfig
from edge_atp.errors import (
    ConfigError,
    EdgeAtpError,
    InvalidQueryError,
    MissingSignalError,
)
from edge_atp.pipeline import Pipeline, runnable_methods
from edge_atp.types import Frame, Policy, PruneSpec, Query, SourceRegion, Status

WHERE = "where is the red box?"
WHAT = "what is the gripper holding?"


@pytest.fixture(scope="module")
def frame(cell_images):
    return Frame(cell_images[0], stamp_ns=5, frame_id="camera_optical", camera="camera")


def ask(pipeline, frame, text=WHAT, **prune):
    return pipeline.answer(Query(text, query_id="q", prune=PruneSpec(**prune)), [frame])


def kept(answer):
    return np.flatnonzero(answer.masks[0].kept).tolist()


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.3, 0.25, 0.001])
def test_counts_follow_the_rounding_rule_and_match_the_mask(pipeline, frame, ratio):
    answer = ask(pipeline, frame, policy=Policy.KEEP_RATIO, keep_ratio=ratio)
    expected = max(1, int(ratio * 256 + 0.5))
    assert answer.tokens.visual_kept == len(kept(answer)) == expected
    assert answer.tokens.visual_total == 256
    assert answer.status is Status.FINAL


def test_keeping_everything_is_the_dense_model(pipeline, frame):
    dense = ask(pipeline, frame, policy=Policy.OFF)
    assert ask(pipeline, frame, policy=Policy.KEEP_RATIO, keep_ratio=1.0).text == dense.text
    assert ask(pipeline, frame, method="none").text == dense.text
    assert dense.method == "none"


@pytest.mark.filterwarnings("ignore::edge_atp.pruning.trimtokenator.TextBlindWarning")
def test_the_methods_named_as_runnable_are_those_that_answer(pipeline, frame):
    runnable = runnable_methods(pipeline.manifest)
    assert {"atp", "cls_topk", "none", "random"} <= set(runnable)
    for method in pruning.available():
        spec = {"policy": Policy.TOKEN_BUDGET, "max_visual_tokens": 16, "method": method}
        if method in runnable:
            assert ask(pipeline, frame, **spec).method == method
        else:
            with pytest.raises((InvalidQueryError, MissingSignalError), match=method):
                ask(pipeline, frame, **spec)


def test_alpha_zero_ignores_the_question(pipeline, frame):
    budget = {"policy": Policy.TOKEN_BUDGET, "max_visual_tokens": 32, "method": "atp"}
    saliency = [kept(ask(pipeline, frame, text, alpha=0.0, **budget)) for text in (WHERE, WHAT)]
    relevance = [kept(ask(pipeline, frame, text, alpha=1.0, **budget)) for text in (WHERE, WHAT)]
    assert saliency[0] == saliency[1]
    assert relevance[0] != relevance[1]


def test_alpha_zero_is_cls_topk_and_alpha_one_ignores_saliency(pipeline, frame):
    budget = {"policy": Policy.TOKEN_BUDGET, "max_visual_tokens": 32}
    assert kept(ask(pipeline, frame, alpha=0.0, method="atp", **budget)) == kept(
        ask(pipeline, frame, method="cls_topk", **budget)
    )
    encoding = pipeline.encode(frame)
    flat = dataclasses.replace(
        encoding,
        vision=dataclasses.replace(
            encoding.vision, cls_attention=np.ones_like(encoding.vision.cls_attention)
        ),
    )
    spec = PruneSpec(method="atp", alpha=1.0, **budget)
    masks = [kept(pipeline.answer(Query(WHAT, prune=spec), [e])) for e in (encoding, flat)]
    assert masks[0] == masks[1]


def test_the_same_question_gives_the_same_answer_and_mask(pipeline, frame):
    first, second = ask(pipeline, frame), ask(pipeline, frame)
    assert first.token_ids == second.token_ids
    assert kept(first) == kept(second)
    assert first.confidence == second.confidence


def test_a_shared_encoding_changes_nothing_but_the_time(pipeline, frame):
    encoding = pipeline.encode(frame)
    shared = pipeline.answer(Query(WHAT), [encoding])
    alone = pipeline.answer(Query(WHAT), [frame])
    assert shared.token_ids == alone.token_ids
    assert kept(shared) == kept(alone)
    assert shared.times.vision_encode == 0.0 < alone.times.vision_encode


def test_stage_times_add_up(pipeline, frame):
    times = ask(pipeline, frame).times
    stages = ("queue_wait", "preprocess", "vision_encode", "prune", "prefill", "decode")
    assert sum(getattr(times, name) for name in stages) == pytest.approx(times.total, rel=1e-6)
    assert 0 < times.first_token <= times.total


def test_mask_says_which_pixels_the_grid_covers(pipeline, frame):
    mask = ask(pipeline, frame).masks[0]
    assert mask.region == SourceRegion(80, 0, 480, 480)
    assert mask.frame is frame
    assert mask.scores.shape == (256,)


def test_two_frames_in_one_question(pipeline, cell_images):
    frames = [Frame(image, camera=f"camera{i}") for i, image in enumerate(cell_images)]
    spec = PruneSpec(Policy.TOKEN_BUDGET, max_visual_tokens=16)
    answer = pipeline.answer(Query(WHAT, prune=spec), frames)
    assert [mask.frame.camera for mask in answer.masks] == ["camera0", "camera1"]
    assert answer.tokens.visual_total == 512
    assert answer.tokens.visual_kept == 32


def test_an_answer_names_every_method_that_ran(pipeline, cell_images):
    frames = [Frame(image, camera=f"camera{i}") for i, image in enumerate(cell_images)]
    some, fewer, every = (
        PruneSpec(Policy.TOKEN_BUDGET, method="atp", max_visual_tokens=16),
        PruneSpec(Policy.KEEP_RATIO, method="atp", keep_ratio=0.03),
        PruneSpec(Policy.OFF, method="atp"),
    )
    for specs, method in (
        ((some, fewer), "atp"),
        ((some, every), "atp,none"),
        ((every, some), "none,atp"),
        ((every, every), "none"),
    ):
        query = Query(WHAT, max_new_tokens=1, prune_per_image=specs)
        assert pipeline.answer(query, frames).method == method


def test_partial_texts_grow_into_the_answer(pipeline, frame):
    partial = []
    answer = pipeline.answer(Query(WHERE), [frame], on_text=partial.append)
    assert partial[-1].strip() == answer.text
    assert all(b.startswith(a) for a, b in itertools.pairwise(partial))


def test_stopping_between_tokens_is_canceled(pipeline, frame):
    answer = pipeline.answer(Query(WHERE), [frame], should_stop=lambda: True)
    assert answer.status is Status.CANCELED


def test_running_out_of_tokens_is_truncated(pipeline, frame):
    answer = pipeline.answer(Query(WHERE, max_new_tokens=1), [frame])
    assert answer.status is Status.TRUNCATED
    assert answer.tokens.generated == 1


def test_score_mass_keeps_more_for_more_mass(pipeline, frame):
    counts = [
        ask(
            pipeline, frame, policy=Policy.SCORE_MASS, score_mass=mass, method="cls_topk"
        ).tokens.visual_kept
        for mass in (0.3, 0.6, 0.9)
    ]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (Query("  "), "text is empty"),
        (Query("x" * 100_000), "100000 characters; at most 2000"),
        (Query("hi", max_new_tokens=-1), "max_new_tokens is -1"),
        (Query("hi", prune=PruneSpec(method="magic")), "unknown pruning method 'magic'.*atp"),
        (Query("hi", prune=PruneSpec(Policy.KEEP_RATIO, keep_ratio=2)), "keep_ratio is 2"),
        (Query("hi", prune=PruneSpec(method="fastv")), "--block-layers 1"),
        (Query("hi <image> there"), "<image>"),
        (Query("hi", choices=("yes",)), "choices has 1 entries"),
    ],
)
def test_bad_questions_are_refused_with_the_field(pipeline, frame, query, says):
    with pytest.raises(InvalidQueryError, match=says):
        pipeline.answer(query, [frame])


def test_no_frame_is_refused(pipeline):
    with pytest.raises(InvalidQueryError, match="no frame"):
        pipeline.answer(Query("hi"), [])


def test_unknown_default_method_is_refused_at_load():
    with pytest.raises(ConfigError, match="magic"):
        Pipeline.load(PipelineConfig(method="magic"))


def test_unknown_model_lists_what_is_shipped():
    with pytest.raises(EdgeAtpError, match=r"shipped models:.*warehouse_tiny"):
        Pipeline.load(PipelineConfig(model="llava-unheard-of"))
