"""TrimTokenator: alignment, then diversity, and the warning when the text is not seen."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
from pruning_cases import make_signals

from edge_atp.errors import ConfigError, ShapeError
from edge_atp.pruning import load
from edge_atp.pruning.trimtokenator import (
    TextBlindWarning,
    alignment,
    length_ratio,
    min_mean_similarity_order,
)
from edge_atp.types import VisualSignals


def reference(visual: np.ndarray, text: np.ndarray, num_kept: int) -> list[int]:
    """Both stages written out in float64."""
    visual, text = visual.astype(np.float64), text.astype(np.float64)
    scores = -np.linalg.norm(visual[:, None] - text[None], axis=2).mean(axis=1)
    survivors = max(int(np.floor(0.8 * len(visual))), num_kept)
    candidates = sorted(np.argsort(-scores, kind="stable")[:survivors].tolist())
    unit = visual / np.linalg.norm(visual, axis=1, keepdims=True)
    similarity = (unit @ unit.T)[np.ix_(candidates, candidates)]
    order = [int(np.argmin(similarity.mean(axis=1)))]
    while len(order) < num_kept:
        mean = similarity[order].mean(axis=0)
        mean[order] = np.inf
        order.append(int(np.argmin(mean)))
    return [candidates[i] for i in order]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_kept", [1, 8, 28, 32, 36])
def test_matches_the_rule_written_out(seed: int, num_kept: int) -> None:
    signals = make_signals(seed=seed)
    order = load("trimtokenator").select(signals, num_kept).order.tolist()
    assert order == reference(signals.image_embeds, signals.text_tokens, num_kept)


def test_alignment_by_hand() -> None:
    visual = np.array([[0, 0], [3, 4], [6, 8]], np.float32)
    text = np.array([[0, 0], [3, 4]], np.float32)
    np.testing.assert_allclose(alignment(visual, text), [-2.5, -2.5, -7.5], atol=1e-6)


def test_scores_are_the_alignment() -> None:
    signals = make_signals()
    expected = -np.linalg.norm(
        signals.image_embeds[:, None].astype(np.float64) - signals.text_tokens[None], axis=2
    ).mean(axis=1)
    scores = load("trimtokenator").select(signals, 4).scores
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_stage_two_by_hand() -> None:
    # Row means 0.4, 0.3, 0.5: first 1. Similarity to it: 0.1 and -0.2, so 2, then 0.
    similarity = np.array([[1.0, 0.1, 0.1], [0.1, 1.0, -0.2], [0.1, -0.2, 1.6]])
    assert min_mean_similarity_order(similarity, 3) == [1, 2, 0]


def test_the_mean_counts_all_chosen_tokens_not_the_nearest() -> None:
    similarity = np.array(
        [
            [1.0, 0.0, 0.9, 0.4],
            [0.0, 0.1, 0.0, 0.4],
            [0.9, 0.0, 1.0, 0.2],
            [0.4, 0.4, 0.2, 1.0],
        ]
    )
    # 1 first (mean .125), then 0 (0 to it, before 2 by index). Mean to {1, 0}: 2 has .45, 3 has .4.
    assert min_mean_similarity_order(similarity, 3) == [1, 0, 3]


def test_five_tokens_leave_four_after_stage_one() -> None:
    visual = np.array([[1, 0], [0, 1], [-1, 0], [0, -1], [9, 0]], np.float32)
    text = np.zeros((1, 2), np.float32) + 0.5
    kept = load("trimtokenator").select(VisualSignals(image_embeds=visual, text_tokens=text), 4)
    assert kept.kept_indices.tolist() == [0, 1, 2, 3]


def test_warns_when_the_visual_tokens_drown_the_text() -> None:
    signals = make_signals()
    assert length_ratio(signals.image_embeds, signals.text_tokens) < 2
    loud = dataclasses.replace(signals, image_embeds=signals.image_embeds * 40)
    with pytest.warns(TextBlindWarning, match="does not see the question"):
        load("trimtokenator").select(loud, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load("trimtokenator").select(signals, 8)


def test_the_warning_is_right_about_the_question_not_mattering() -> None:
    signals = make_signals()
    rng = np.random.default_rng(5)
    lengths = np.linspace(60, 200, 36, dtype=np.float32)[:, None]
    visual = signals.image_embeds / np.linalg.norm(signals.image_embeds, axis=1, keepdims=True)
    kept = set()
    for _ in range(5):
        text = rng.standard_normal(signals.text_tokens.shape).astype(np.float32) * 0.05
        loud = VisualSignals(image_embeds=visual * lengths, text_tokens=text)
        with pytest.warns(TextBlindWarning):
            kept.add(tuple(load("trimtokenator").select(loud, 8).order.tolist()))
    assert len(kept) == 1


def test_widths_must_agree() -> None:
    signals = dataclasses.replace(make_signals(), text_tokens=np.ones((3, 5), np.float32))
    with pytest.raises(ShapeError, match="embedding space"):
        load("trimtokenator").select(signals, 4)


@pytest.mark.parametrize("ratio", [0.0, 1.2])
def test_the_ratio_is_checked(ratio: float) -> None:
    with pytest.raises(ConfigError, match="stage1_ratio"):
        load("trimtokenator", stage1_ratio=ratio)
