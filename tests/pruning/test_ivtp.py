"""IVTP: rollout, importance and the textual pseudo-CLS."""

from __future__ import annotations

import numpy as np
import pytest

from edge_atp.errors import ConfigError, ShapeError
from edge_atp.pruning import load
from edge_atp.pruning.ivtp import (
    importance,
    map_relevance,
    pseudo_cls,
    rank,
    rollout_row,
    text_relevance,
)


def random_attention(seed: int, layers: int = 3, num: int = 7) -> np.ndarray:
    powers = np.exp(np.random.default_rng(seed).standard_normal((layers, num, num)))
    return (powers / powers.sum(axis=2, keepdims=True)).astype(np.float32)


def test_rollout_by_hand() -> None:
    first = np.array([[0.5, 0.5], [0.0, 1.0]], np.float32)
    second = np.array([[0.2, 0.8], [1.0, 0.0]], np.float32)
    # (A2 + I) A1 row 0: 1.2 * (.5, .5) + .8 * (0, 1) = (.6, 1.4).
    np.testing.assert_allclose(rollout_row([first, second], 0), [0.6, 1.4], atol=1e-6)
    # One layer has no identity: its row as it is.
    np.testing.assert_allclose(rollout_row([first], 1), [0, 1], atol=1e-7)


@pytest.mark.parametrize("row", [0, 3, 6])
def test_rollout_is_the_row_of_the_whole_product(row: int) -> None:
    attentions = random_attention(0)
    whole = attentions[0].astype(np.float64)
    for attention in attentions[1:]:
        whole = (attention + np.eye(7)) @ whole
    np.testing.assert_allclose(rollout_row(list(attentions), row), whole[row], rtol=1e-5)


def test_heads_are_averaged() -> None:
    attentions = random_attention(1)
    heads = [np.stack([a * 0.5, a * 1.5]) for a in attentions]
    np.testing.assert_allclose(rollout_row(heads, 2), rollout_row(list(attentions), 2), rtol=1e-5)


def test_importance_by_hand() -> None:
    rollout = np.array([0.6, 1.4, 0.5], np.float32)
    values = np.array([[3, 4], [1, 0], [0, 0]], np.float32)  # lengths 5, 1, 0
    np.testing.assert_allclose(importance(rollout, values), [3 / 4.4, 1.4 / 4.4, 0], atol=1e-6)
    by_head = values.T[:, :, None]  # (heads, n, 1): the same vectors, one value a head
    np.testing.assert_allclose(importance(rollout, by_head), [3 / 4.4, 1.4 / 4.4, 0], atol=1e-6)
    np.testing.assert_array_equal(importance(rollout, np.zeros((3, 2))), np.zeros(3))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_constant_attention_keeps_the_lowest_indices(backend: str) -> None:
    # Blocked matrix products add the columns of a tail in another order.
    attentions = [np.full((57, 57), 1 / 57, np.float32)] * 3
    values, visual = np.full((57, 5), 0.3, np.float32), np.arange(2, 57)
    if backend == "torch":
        torch = pytest.importorskip("torch")
        attentions = [torch.from_numpy(a) for a in attentions]
        values, visual = torch.from_numpy(values), torch.from_numpy(visual)
    assert rank(attentions, values, 0, visual, 4).order.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_rank_scores_the_visual_tokens_only(backend: str) -> None:
    attentions, values = random_attention(2), np.ones((7, 4), np.float32)
    visual = np.array([1, 2, 4, 5])
    row = rollout_row(list(attentions), 6)[visual]
    expected = row / row.sum()
    if backend == "torch":
        torch = pytest.importorskip("torch")
        attentions, values, visual = map(torch.from_numpy, (attentions, values, visual))
    selection = rank(list(attentions), values, 6, visual, 2)
    np.testing.assert_allclose(np.asarray(selection.scores), expected, rtol=1e-5)
    assert selection.order.tolist() == np.argsort(-expected, kind="stable")[:2].tolist()


def test_text_relevance_is_the_cosine_with_the_image() -> None:
    tokens = np.array([[1, 0], [1, 1], [0, 0]], np.float32)
    relevance = text_relevance(tokens, np.array([2, 0], np.float32))
    np.testing.assert_allclose(relevance, [1, 0.5**0.5, 0], atol=1e-6)


def test_relevance_follows_the_characters() -> None:
    # "red forklift": CLIP sees "red", "fork", "lift"; the language model "red", " forklift" and a
    # special token that stands for no characters.
    relevance = np.array([0.3, 0.1, 0.5], np.float32)
    mapped = map_relevance(relevance, [(0, 3), (4, 8), (8, 12)], [(0, 3), (3, 12), (0, 0)])
    np.testing.assert_allclose(mapped, [0.3, 0.3, -1], atol=1e-6)


def test_partial_overlaps_weigh_by_characters() -> None:
    relevance = np.array([0.0, 1.0], np.float32)
    mapped = map_relevance(relevance, [(0, 4), (4, 5)], [(1, 5), (0, 1), (4, 5)])
    np.testing.assert_allclose(mapped, [1 / 4, 0, 1], atol=1e-6)


def test_every_token_needs_its_span() -> None:
    with pytest.raises(ShapeError, match="1 clip_spans for 2 relevances"):
        map_relevance(np.ones(2, np.float32), [(0, 1)], [(0, 1)])


def test_pseudo_cls_averages_the_relevant_tokens() -> None:
    tokens = np.array([[2, 0], [4, 2], [100, 100]], np.float32)
    relevance = np.array([0.2, 0.9, 0.19], np.float32)
    fallback = np.array([7, 7], np.float32)
    # The threshold itself counts, as float32 holds it.
    threshold = float(np.float32(0.2))
    np.testing.assert_allclose(pseudo_cls(tokens, relevance, fallback, threshold), [3, 1])
    np.testing.assert_allclose(pseudo_cls(tokens, relevance, fallback, 0.5), [4, 2])


def test_without_a_relevant_token_the_visual_cls_stands_in() -> None:
    tokens, fallback = np.ones((2, 3), np.float16), np.full(3, 5.0, np.float16)
    result = pseudo_cls(tokens, np.array([-1, 0.1], np.float32), fallback)
    np.testing.assert_array_equal(result, [5, 5, 5])
    assert result.dtype == np.float32


def test_an_empty_group_is_refused() -> None:
    with pytest.raises(ShapeError, match="at least one layer"):
        rollout_row([], 0)


def test_the_published_schedule() -> None:
    method = load("ivtp")
    encoder = method.encoder_schedule(576)
    assert encoder.layers == (3, 6, 9, 12, 15, 18, 21, 24)
    assert encoder.counts == (473, 389, 320, 263, 216, 178, 146, 120)
    language = method.schedule(576)
    assert language.layers == (3, 6, 9, 12)
    assert language.counts == (103, 88, 75, 64)


def test_a_generous_budget_is_not_cut_below_itself_in_the_encoder() -> None:
    method = load("ivtp")
    assert method.encoder_schedule(576, 192).counts[-1] == 192
    assert method.schedule(576, 192).counts == (192, 192, 192, 192)
    assert method.encoder_schedule(576, 32).counts[-1] == 120
    assert method.schedule(576, 32).counts[-1] == 32


def test_layers_must_fill_their_groups() -> None:
    with pytest.raises(ConfigError, match="llm_layers is 10 and group_size 3"):
        load("ivtp", llm_layers=10)
