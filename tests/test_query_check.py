"""Bounds of a question, and what closed answer sets and budgets per image give."""

import numpy as np
import pytest

from edge_atp.config import PipelineConfig
from edge_atp.errors import InvalidQueryError
from edge_atp.query_check import check_query
from edge_atp.types import ConfidenceKind, Frame, Policy, PruneSpec, Query, Status

WHAT = "what is the gripper holding?"
SLOTS = ("nothing", "red box", "blue drum", "a red box", "yellow tote", "blue box")


@pytest.fixture(scope="module")
def frame(cell_images):
    return Frame(cell_images[0])


@pytest.mark.parametrize(
    ("query", "images", "says"),
    [
        (Query("hi", choices=("yes",)), 1, r"choices has 1 entries; give 2 to 64 \(max_choices\)"),
        (Query("hi", choices=("a",) * 65), 1, "choices has 65 entries"),
        (Query("hi", choices=("a", "b" * 201)), 1, r"choices\[1\] has 201 .*max_choice_chars"),
        (Query("hi", conversation_id="c" * 257), 1, "conversation_id has 257 characters"),
        (Query("hi", max_new_tokens=99_999), 1, "max_new_tokens is 99999; 1 to 4096"),
        (Query("hi", max_new_tokens=-1), 1, "max_new_tokens is -1; 1 to 4096"),
        (Query("hi"), 9, r"9 images; at most 8 \(max_images\)"),
        (Query("hi", prune_per_image=(PruneSpec(),)), 2, "1 entries for 2 images"),
        (
            Query("hi", prune_per_image=(PruneSpec(method="atp"), PruneSpec(method="random"))),
            2,
            "several methods .*'atp', 'random'",
        ),
    ],
)
def test_refused_before_any_work(query, images, says):
    with pytest.raises(InvalidQueryError, match=says):
        check_query(query, images, PipelineConfig())


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        (("yes", " "), r"choices\[1\] is empty"),
        (("yes", "no", " yes "), r"choices\[2\] ' yes ' is the same answer as 'yes'"),
        (("yes", "no</s>"), r"choices\[1\] contains the special token '</s>'"),
    ],
)
def test_choices_that_no_model_can_tell_apart(pipeline, choices, says):
    with pytest.raises(InvalidQueryError, match=says):
        pipeline.check(Query("hi", choices=choices))


def test_the_answer_is_the_most_probable_choice(pipeline, frame):
    shown = []
    answer = pipeline.answer(Query(WHAT, choices=SLOTS), [frame], on_text=shown.append)
    probabilities = dict(zip(SLOTS, answer.choice_probs, strict=True))
    assert answer.text == max(probabilities, key=probabilities.get)
    assert answer.confidence == probabilities[answer.text]
    assert sum(answer.choice_probs) == pytest.approx(1.0)
    assert answer.confidence_kind is ConfidenceKind.CHOICE_PROB
    assert (answer.status, shown) == (Status.FINAL, [answer.text])
    assert pipeline.engine._prompt.decode(list(answer.token_ids)).strip() == answer.text
    assert answer.times.prefill > 0


def test_bounding_the_improbable_changes_nothing(float_pipeline, frame):
    """The pipeline's probabilities against every choice computed to its end."""
    answer = float_pipeline.answer(Query(WHAT, choices=SLOTS), [frame])
    encoding = float_pipeline.encode(frame)
    kept = np.flatnonzero(answer.masks[0].kept)
    image = float_pipeline.engine.project(encoding.vision.patch_features, kept)
    scores = float_pipeline.engine.score_choices(
        float_pipeline.engine.embed_prompt(WHAT, [image]), SLOTS
    )
    np.testing.assert_allclose(answer.choice_probs, scores.probabilities, atol=1e-6)


def test_a_free_answer_has_the_mean_token_probability(pipeline, frame):
    answer = pipeline.answer(Query(WHAT), [frame])
    assert answer.confidence_kind is ConfidenceKind.MEAN_TOKEN_PROB
    assert answer.choice_probs == ()


def test_each_image_has_its_budget_and_its_mask(pipeline, cell_images):
    frames = [Frame(image, camera=f"camera{n}") for n, image in enumerate(cell_images)]
    specs = (
        PruneSpec(Policy.TOKEN_BUDGET, max_visual_tokens=16),
        PruneSpec(Policy.KEEP_RATIO, keep_ratio=0.5),
    )
    answer = pipeline.answer(Query(WHAT, prune_per_image=specs), frames)
    assert [int(mask.kept.sum()) for mask in answer.masks] == [16, 128]
    assert answer.tokens.visual_kept == 144
    for frame, spec, mask in zip(frames, specs, answer.masks, strict=True):
        alone = pipeline.answer(Query(WHAT, prune=spec), [frame]).masks[0]
        np.testing.assert_array_equal(mask.kept, alone.kept)
