"""CDPruner: greedy MAP of the conditional DPP."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from pruning_cases import make_signals

from edge_atp.errors import ConfigError
from edge_atp.pruning import load
from edge_atp.pruning.cdpruner import greedy_map
from edge_atp.pruning.similarity import cosine_matrix
from edge_atp.types import VisualSignals


def kernel(signals: VisualSignals) -> np.ndarray:
    def unit(rows: np.ndarray) -> np.ndarray:
        rows = rows.astype(np.float64)
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    relevance = -(unit(signals.patch_embeds) @ unit(signals.text_embed))
    relevance = (relevance - relevance.min()) / (relevance.max() - relevance.min())
    tokens = unit(signals.image_embeds)
    return relevance[:, None] * (tokens @ tokens.T) * relevance[None, :]


def reference(matrix: np.ndarray, num_kept: int) -> list[int]:
    """Each step tries every token and takes the largest determinant."""
    order: list[int] = []
    for _ in range(num_kept):
        rest = [i for i in range(len(matrix)) if i not in order]
        determinants = [np.linalg.det(matrix[np.ix_([*order, i], [*order, i])]) for i in rest]
        order.append(rest[int(np.argmax(determinants))])
    return order


@pytest.mark.parametrize("seed", range(4))
def test_every_step_grows_the_determinant_most(seed: int) -> None:
    signals = make_signals(seed=seed)
    selection = load("cdpruner").select(signals, 10)
    assert selection.order.tolist() == reference(kernel(signals), 10)


def test_by_hand() -> None:
    # Kernel with r = 1, .9, .8 and cos(0, 1) = .8, the rest orthogonal. First 0 (gain 1). Then 1
    # gains .81 (1 - .64) = .29 and 2 gains .64: 2, although it is less relevant than 1.
    similarity = np.array([[1.0, 0.8, 0.0], [0.8, 1.0, 0.0], [0.0, 0.0, 1.0]])
    relevance = np.array([1.0, 0.9, 0.8])
    assert greedy_map(similarity, relevance, 3) == [0, 2, 1]


def test_relevance_is_the_negated_cosine_unless_told() -> None:
    signals = VisualSignals(
        patch_embeds=np.array([[1, 0], [0, 1], [-1, 0]], np.float32),
        text_embed=np.array([1, 0], np.float32),
        image_embeds=np.eye(3, dtype=np.float32),
    )
    assert load("cdpruner").select(signals, 3).order.tolist() == [2, 1, 0]
    raw = load("cdpruner", relevance_source="raw").select(signals, 3)
    assert raw.order.tolist() == [0, 1, 2]
    np.testing.assert_allclose(raw.scores, [1, 0.5, 0], atol=1e-6)


def test_copies_come_last_and_lowest_first() -> None:
    # Two distinct directions, three copies each: rank 2, then noise, so index order.
    tokens = np.array([[1, 0], [1, 0], [0.6, 0.8], [0.6, 0.8], [1, 0], [0.6, 0.8]], np.float32)
    similarity = cosine_matrix(tokens)
    assert greedy_map(similarity, np.ones(6), 6) == [0, 2, 1, 3, 4, 5]


def test_a_small_relevance_is_not_taken_for_noise() -> None:
    # Gains 1e-6 and 4e-6: below float32's rounding of the largest gain, but not of their own.
    relevance = np.array([1.0, 1e-3, 0.0, 2e-3])
    assert greedy_map(np.eye(4, dtype=np.float32), relevance, 4) == [0, 3, 1, 2]


def test_a_budget_above_the_rank_still_gives_distinct_tokens() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((30, 4))
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    order = greedy_map(tokens @ tokens.T, np.ones(30), 20)
    assert len(set(order)) == 20
    rest = [i for i in range(30) if i not in order[:4]]
    assert order[4:] == rest[:16]


def test_similarity_falls_back_on_what_is_exposed() -> None:
    signals = make_signals()
    without = dataclasses.replace(signals, image_embeds=None)
    features_only = dataclasses.replace(signals, image_embeds=signals.patch_features)
    got, expected = (load("cdpruner").select(s, 8) for s in (without, features_only))
    assert got.order.tolist() == expected.order.tolist()


def test_greedy_is_within_its_guarantee_of_the_best_set() -> None:
    signals = make_signals(rows=2, cols=4, seed=3)
    matrix = kernel(signals)
    order = load("cdpruner").select(signals, 3).order.tolist()
    best = max(np.linalg.det(matrix[np.ix_(s, s)]) for s in itertools.combinations(range(8), 3))
    assert np.linalg.det(matrix[np.ix_(order, order)]) > 0.6 * best


def test_an_unknown_source_names_the_choices() -> None:
    with pytest.raises(ConfigError, match="negated, raw"):
        load("cdpruner", relevance_source="value")
