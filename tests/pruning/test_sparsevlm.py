"""SparseVLM: raters, rank rule and recycling."""

from __future__ import annotations

import numpy as np
import pytest

from edge_atp.errors import ConfigError, ShapeError
from edge_atp.pruning import load
from edge_atp.pruning.sparsevlm import keep_count, merge_clusters, rank, raters, recycle


def test_raters_by_hand() -> None:
    visual = np.array([[1, 0], [1, 0]], np.float32)
    text = np.array([[3, 0], [0, 0], [0, 5]], np.float32)
    # softmax(3, 0, 0) = .91, .045, .045: above the mean of 1/3 is the first only.
    assert raters(visual, text).tolist() == [0]


def test_constant_similarity_leaves_every_token_a_rater() -> None:
    assert raters(np.zeros((4, 2), np.float32), np.ones((3, 2), np.float32)).tolist() == [0, 1, 2]
    assert raters(np.ones((4, 2), np.float32), np.ones((1, 2), np.float32)).tolist() == [0]
    torch = pytest.importorskip("torch")
    for count in range(1, 9):  # 1/5 and 1/7 round differently from their mean
        assert raters(torch.ones((9, 3)), torch.ones((count, 3))).tolist() == list(range(count))


def test_raters_match_the_rule_written_out() -> None:
    rng = np.random.default_rng(0)
    visual, text = rng.standard_normal((20, 8)), rng.standard_normal((7, 8))
    powers = np.exp(visual @ text.T)
    relevance = (powers / powers.sum(axis=1, keepdims=True)).mean(axis=0)
    expected = np.flatnonzero(relevance > relevance.mean())
    assert raters(visual, text).tolist() == expected.tolist()
    torch = pytest.importorskip("torch")
    theirs = raters(torch.from_numpy(visual), torch.from_numpy(text))
    assert theirs.tolist() == expected.tolist()


def test_rank_averages_heads_and_raters() -> None:
    rows = np.array([[[0.1, 0.2, 0.3], [0.5, 0.2, 0.0]]], np.float32)  # means .3, .2, .15
    assert rank(rows, 2).order.tolist() == [0, 1]


def test_rank_rule_by_hand() -> None:
    # Rank 1 of 4 columns: three are redundant.
    rows = np.ones((2, 3, 4), np.float32)
    assert keep_count(rows) == 1
    assert keep_count(rows, scale=0.5) == 3
    assert keep_count(rows, minimum=2) == 2
    independent = np.eye(4, dtype=np.float32)[None]
    assert keep_count(independent) == 4
    assert keep_count(rows, scale=0.0) == 4


def test_recycling_condenses_the_best_dropped_tokens() -> None:
    tokens = np.arange(20, dtype=np.float32)[:, None] * np.ones((1, 4), np.float32)
    scores = np.arange(20, dtype=np.float32)
    # int(20 * .3) + 1 = 7 tokens, 13 to 19, in one cluster.
    np.testing.assert_allclose(recycle(tokens, scores), np.full((1, 4), 16.0), rtol=1e-6)
    assert recycle(tokens[:0], scores[:0]).shape == (0, 4)
    np.testing.assert_array_equal(recycle(tokens[:1], scores[:1]), tokens[:1])


def test_clusters_by_hand() -> None:
    # k = 2: all six have about the density exp(-.1^2 / 2). The densest peaks at the farthest
    # distance, the densest of the other group at the gap between the groups, the rest at .1.
    tokens = np.array([[0.0], [0.1], [0.2], [3.0], [3.1], [3.2]], np.float32)
    merged = merge_clusters(tokens, 2)
    np.testing.assert_allclose(merged[:, 0], [0.1, 3.1], atol=1e-5)


def test_a_lone_token_far_away_is_not_a_centre() -> None:
    # Its density is exp(-90^2 / 2): both centres are in the dense group. There all three have a
    # neighbour at .1; the first counts as densest, the second as the next, and takes the far one.
    tokens = np.array([[0.0], [0.1], [0.2], [90.0]], np.float32)
    np.testing.assert_allclose(merge_clusters(tokens, 2)[:, 0], [0.0, 90.3 / 3], atol=1e-4)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_far_tokens_are_ranked_by_densities_that_no_float_holds(backend: str) -> None:
    # Spreads 20000, 6050, 5000, 5000: exp of each is 0. Logs of the peaks: log(200) - 20000,
    # log(110) - 6050, log(410) - 5000 (densest: the farthest distance), log(100) - 5000.
    tokens = np.array([[0.0], [200.0], [310.0], [410.0]], np.float32)
    if backend == "torch":
        tokens = pytest.importorskip("torch").from_numpy(tokens)
    np.testing.assert_allclose(merge_clusters(tokens, 2)[:, 0], [510 / 3, 410.0], atol=1e-4)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_twins_are_one_place_however_long_they_are(backend: str) -> None:
    # Three places, each twice, 1 and 8 apart, and 3000 from the origin: products of 9e6 are 1 apart
    # in float32.
    places = np.array([[3000.7, 0.3], [3000.7, 1.3], [3000.7, 9.3]], np.float32)
    tokens = np.concatenate([places, places])
    if backend == "torch":
        tokens = pytest.importorskip("torch").from_numpy(tokens)
    # Densest is token 0; tokens 1 and 2 are the first of their places; twins peak at 0.
    np.testing.assert_allclose(merge_clusters(tokens, 3), places, atol=1e-4)


@pytest.mark.parametrize("num_clusters", [1, 3, 8])
def test_clustering_identical_tokens_is_defined(num_clusters: int) -> None:
    merged = merge_clusters(np.full((8, 3), 2.0, np.float16), num_clusters)
    assert merged.dtype == np.float16
    np.testing.assert_array_equal(merged, np.full((num_clusters, 3), 2.0))


def test_as_many_clusters_as_tokens_changes_nothing() -> None:
    tokens = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    np.testing.assert_allclose(merge_clusters(tokens, 6), tokens, atol=1e-6)


def test_torch_agrees() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    tokens = rng.standard_normal((40, 8)).astype(np.float32)
    scores = rng.random(40).astype(np.float32)
    ours = recycle(tokens, scores, share=0.9)
    theirs = recycle(torch.from_numpy(tokens), torch.from_numpy(scores), share=0.9)
    np.testing.assert_allclose(theirs.numpy(), ours, atol=1e-5)
    rows = rng.random((2, 4, 30)).astype(np.float32)
    assert keep_count(torch.from_numpy(rows)) == keep_count(rows) == 4


def test_the_published_schedule() -> None:
    assert load("sparsevlm").schedule(576).counts == (300, 200, 110)
    assert load("sparsevlm").schedule(576, 64).counts[-1] == 64


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ShapeError, match="visual is 2 wide and text 3"):
        raters(np.ones((4, 2)), np.ones((4, 3)))
    with pytest.raises(ConfigError, match="rank_scale is 2"):
        load("sparsevlm", rank_scale=2.0)
    with pytest.raises(ConfigError, match="differ in length"):
        load("sparsevlm", layers=(2,))
