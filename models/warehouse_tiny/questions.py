"""Questions about a scene: wording, exact answer and the patches that show the answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.warehouse_tiny import wordings as w
from models.warehouse_tiny.facts import FAMILIES, Fact, SceneView
from models.warehouse_tiny.scene import scene_rng
from models.warehouse_tiny.state import SceneState

TARGET_COVERAGE = 0.5
"""A patch belongs to a question's target when its entities cover at least half of it."""


@dataclass(frozen=True)
class Question:
    """One question about one scene.

    Attributes:
        family: key of ``FAMILIES``.
        text: as typed.
        answer: exact, lower case.
        patch_mask: (256,) bool, patches of what is asked about; all False when it is absent.
        patch_weight: (256,) float32 in [0, 1], share of each patch, entities of equal weight.
        entities: the ids behind the mask.
    """

    family: str
    text: str
    answer: str
    patch_mask: np.ndarray
    patch_weight: np.ndarray
    entities: tuple[int, ...]


def questions_for(
    state: SceneState,
    coverage: np.ndarray,
    split: str,
    seed: int,
    per_family: int = 1,
) -> list[Question]:
    """The evaluation questions of a scene, deterministic in (split, seed).

    Args:
        state: ground truth.
        coverage: (NUM_ENTITIES, 256) from ``patch_coverage``.
        split: ``paraphrase`` takes held-out wordings, every other split plain training wordings.
        seed: of the scene.
        per_family: questions drawn from each family; a family without a visible fact gives none.
    """
    rng = scene_rng(split, seed, stream=1)
    view = SceneView(state, coverage)
    found = []
    for family in FAMILIES:
        for _ in range(per_family):
            fact = draw_fact(view, rng, family)
            if fact is not None:
                text = word(fact, rng, held_out=split == "paraphrase")
                found.append(make_question(fact, text, coverage))
    return found


def draw_fact(
    view: SceneView, rng: np.random.Generator, family: str, pair_share: float = 0.6
) -> Fact | None:
    """A random fact of a family, or None when the picture does not show enough for one.

    ``pair_share`` is the share of descriptions that name colour and type together.
    """
    for _ in range(4):
        fact = FAMILIES[family](view, rng, pair_share)
        if fact is not None:
            return fact
    return None


def word(fact: Fact, rng: np.random.Generator, held_out: bool = False) -> str:
    """Word a fact with a random template; held-out ones are never used in training."""
    templates = w.wordings(fact.family, held_out)
    template = _choice(rng, w.expand(templates[rng.integers(len(templates))]))
    fields = dict(fact.fields)
    if "{place}" in template:
        places = w.PLACES + (w.HELD_OUT_PLACES if held_out else ())
        place = _choice(rng, w.expand(places[rng.integers(len(places))]))
        template = template.replace("{place}", place)
    return template.format(**fields)


def _choice(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[rng.integers(len(options))]


def as_typed(text: str, rng: np.random.Generator, amount: float = 1.0) -> str:
    """What people do to a question: politeness, an unrelated sentence, lost punctuation, capitals.

    ``amount`` scales the probabilities; 0 returns the text unchanged.
    """
    if rng.random() < 0.15 * amount:
        text = f"{_choice(rng, w.PREFIXES)} {text}"
    if rng.random() < 0.08 * amount:
        text = f"{text} {_choice(rng, w.SUFFIXES)}"
    if rng.random() < 0.12 * amount:
        extra = _choice(rng, w.DISTRACTORS)
        text = f"{extra} {text}" if rng.random() < 0.5 else f"{text} {extra}"
    if rng.random() < 0.15 * amount:
        text = text.rstrip("?.")
    if rng.random() < 0.1 * amount:
        text = text.replace(",", "").replace(":", "")
    if rng.random() < 0.1 * amount:
        text = text.upper() if rng.random() < 0.3 else text.capitalize()
    return text


def target_weight(entities: tuple[int, ...], coverage: np.ndarray) -> np.ndarray:
    """(256,) float32: coverage of the entities, each scaled so that its best patch is 1."""
    weight = np.zeros(coverage.shape[1], np.float32)
    for entity in entities:
        peak = coverage[entity].max()
        if peak > 0:
            weight = np.maximum(weight, coverage[entity] / peak)
    return weight


def make_question(fact: Fact, text: str, coverage: np.ndarray) -> Question:
    """Attach the patches that show what a fact is about."""
    weight = target_weight(fact.entities, coverage)
    mask = np.zeros(coverage.shape[1], bool)
    for entity in fact.entities:
        mask |= coverage[entity] >= TARGET_COVERAGE
        if coverage[entity].max() > 0:
            mask[int(coverage[entity].argmax())] = True
    return Question(fact.family, text, fact.answer, mask, weight, fact.entities)
