from __future__ import annotations

import numpy as np
import pytest
from flat_scenes import flat_coverage

from models.warehouse_tiny import questions as q
from models.warehouse_tiny import vocabulary as v
from models.warehouse_tiny import wordings as w
from models.warehouse_tiny.facts import FAMILIES, SceneView
from models.warehouse_tiny.scene import sample_scene
from models.warehouse_tiny.state import SceneState


def facts_of(
    state: SceneState, family: str, draws: int = 200
) -> dict[tuple[tuple[str, str], ...], str]:
    """fields -> answer of many random facts of a family."""
    view, rng = SceneView(state, flat_coverage(state)), np.random.default_rng(0)
    found = {}
    for _ in range(draws):
        fact = q.draw_fact(view, rng, family)
        if fact is not None:
            found[tuple(sorted(fact.fields.items()))] = fact.answer
    return found


def answers_about(state: SceneState, family: str, **fields: str) -> set[str]:
    wanted = fields.items()
    return {a for f, a in facts_of(state, family).items() if wanted <= dict(f).items()}


@pytest.mark.parametrize(
    ("family", "fields", "answer"),
    [
        ("exist", {"thing": "red box"}, "yes"),
        ("exist", {"thing": "blue box"}, "no"),
        ("exist_shelf", {"thing": "red tote", "shelf": "middle"}, "yes"),
        ("exist_shelf", {"thing": "red tote", "shelf": "top"}, "no"),
        ("colour", {"shelf": "top", "n": "3"}, "blue"),
        ("what", {"shelf": "middle", "n": "1"}, "red tote"),
        ("what", {"shelf": "bottom", "n": "4"}, "empty"),
        ("where", {"thing": "red tote"}, "middle shelf, slot 1"),
        ("where", {"thing": "green drum"}, "gripper"),
        ("count_all", {}, "3"),
        ("count_shelf", {"shelf": "top"}, "2"),
        ("count_shelf", {"shelf": "bottom"}, "0"),
        ("count_colour", {"colour": "red"}, "2"),
        ("gripper", {}, "green drum"),
        ("gripper_colour", {}, "green"),
        ("empty", {"shelf": "top", "n": "2"}, "yes"),
        ("empty", {"shelf": "top", "n": "1"}, "no"),
        ("free", {"shelf": "top"}, "2, 4"),
        ("free", {"shelf": "bottom"}, "1, 2, 3, 4"),
        ("hazard", {}, "cone"),
    ],
)
def test_answers_follow_from_the_state(
    hand_made_state: SceneState, family: str, fields: dict[str, str], answer: str
) -> None:
    assert answers_about(hand_made_state, family, **fields) == {answer}


def test_the_caption_lists_every_slot(hand_made_state: SceneState) -> None:
    assert answers_about(hand_made_state, "caption") == {
        "top shelf: red box, empty, blue drum, empty; middle shelf: red tote, empty, empty, empty; "
        "bottom shelf: empty, empty, empty, empty; gripper: green drum; floor: cone."
    }


def test_ambiguous_things_are_never_asked_for(hand_made_state: SceneState) -> None:
    asked = [dict(f)["thing"] for f in facts_of(hand_made_state, "where")]
    assert not {"red object", "red item", "red thing", "drum"} & set(asked)


def test_nothing_is_asked_about_what_the_picture_hides(hand_made_state: SceneState) -> None:
    coverage = flat_coverage(hand_made_state)
    coverage[v.FIRST_ITEM + 2] *= 0.4  # the blue drum shows less than 1.4 patches
    view, rng = SceneView(hand_made_state, coverage), np.random.default_rng(0)
    for family in ("where", "count_all", "count_colour", "caption"):
        assert q.draw_fact(view, rng, family) is None
    asked = [q.draw_fact(view, rng, "colour") for _ in range(50)]
    assert all(fact is None or fact.answer == "red" for fact in asked)


def test_patch_masks_are_the_entities_patches(hand_made_state: SceneState) -> None:
    coverage = flat_coverage(hand_made_state)
    for question in q.questions_for(hand_made_state, coverage, "test", 0, per_family=3):
        expected = coverage[list(question.entities)].sum(0) >= 0.5
        np.testing.assert_array_equal(question.patch_mask, expected)
        assert question.patch_weight.max(initial=0.0) <= 1.0


def test_questions_are_deterministic_and_cover_every_family() -> None:
    families = set()
    for seed in range(6):
        state = sample_scene("test", seed)
        first = q.questions_for(state, flat_coverage(state), "test", seed)
        again = q.questions_for(state, flat_coverage(state), "test", seed)
        assert [(a.text, a.answer) for a in first] == [(b.text, b.answer) for b in again]
        families |= {a.family for a in first}
    assert families == set(FAMILIES)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_held_out_wordings_are_never_trained(family: str) -> None:
    train = {text for t in w.TRAIN[family] for text in w.expand(t)}
    held_out = {text for t in w.HELD_OUT[family] for text in w.expand(t)}
    assert not train & held_out
    assert len(train) >= 6
    assert len(held_out) >= 3


def test_held_out_places_and_distractors_are_never_trained() -> None:
    train = {text for t in w.PLACES for text in w.expand(t)}
    assert not train & {text for t in w.HELD_OUT_PLACES for text in w.expand(t)}
    assert not set(w.DISTRACTORS) & set(w.HELD_OUT_DISTRACTORS)


def test_only_the_paraphrase_split_uses_held_out_wordings() -> None:
    state = sample_scene("test", 1)
    held_out = {text for ts in w.HELD_OUT.values() for t in ts for text in w.expand(t)}
    plain = {text for text in held_out if "{" not in text}
    test = {a.text for a in q.questions_for(state, flat_coverage(state), "test", 1, 6)}
    other = {a.text for a in q.questions_for(state, flat_coverage(state), "paraphrase", 1, 6)}
    assert not test & plain
    assert other & plain


def test_typing_noise_can_be_switched_off() -> None:
    rng = np.random.default_rng(0)
    assert q.as_typed("where is the red box?", rng, 0.0) == "where is the red box?"
    changed = {q.as_typed("where is the red box?", rng) for _ in range(60)}
    assert len(changed) > 5
    assert all("red box" in text.lower() for text in changed)
