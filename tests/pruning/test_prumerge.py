"""PruMerge and PruMerge+."""

from __future__ import annotations

import numpy as np
import pytest
from pruning_cases import make_signals

from edge_atp.errors import ConfigError
from edge_atp.pruning import load
from edge_atp.pruning.prumerge import adaptive_grid, num_outliers, take_up
from edge_atp.types import VisualSignals


def reference_merged(signals: VisualSignals, kept: list[int], neighbours: int = 32) -> np.ndarray:
    """Published merging, one kept token at a time, then the fused token."""
    features = signals.patch_features.astype(np.float64)
    weights = signals.cls_attention.mean(axis=0).astype(np.float64)
    keys = signals.patch_keys.astype(np.float64)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    rows = []
    for i in kept:
        others = sorted((j for j in range(len(keys)) if j != i), key=lambda j: -(keys[i] @ keys[j]))
        near = others[:neighbours]
        rows.append(features[i] + sum(weights[j] * features[j] for j in near))
    rest = [j for j in range(len(keys)) if j not in kept]
    return np.stack([*rows, sum(weights[j] * features[j] for j in rest)])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_kept", [1, 12, 60])
def test_matches_the_procedure_written_out(seed: int, num_kept: int) -> None:
    signals = make_signals(rows=8, cols=8, seed=seed)
    selection = load("prumerge").select(signals, num_kept)
    top = np.argsort(-signals.cls_attention.mean(axis=0), kind="stable")[:num_kept]
    assert selection.kept_indices.tolist() == sorted(top.tolist())
    assert selection.merged.shape == (num_kept + 1, 24)
    expected = reference_merged(signals, sorted(top.tolist()))
    np.testing.assert_allclose(selection.merged, expected, atol=1e-4)


def test_neighbours_by_hand() -> None:
    features = np.array([[1.0], [10.0], [100.0], [1000.0]], np.float32)
    keys = np.array([[1, 0], [1, 0.1], [0, 1], [1, 0.1]], np.float32)
    weights = np.array([0.4, 0.3, 0.2, 0.1], np.float32)
    kept = np.array([0])
    # Tokens 1 and 3 tie as nearest: the lower index with one neighbour, both with two.
    np.testing.assert_allclose(take_up(features, keys, weights, kept, 1), [[1 + 3]])
    np.testing.assert_allclose(take_up(features, keys, weights, kept, 2), [[1 + 3 + 100]])
    np.testing.assert_allclose(take_up(features, keys, weights, kept, 9), [[1 + 3 + 20 + 100]])
    np.testing.assert_allclose(take_up(features, keys, weights, kept, 0), [[1]])


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_neighbours_that_float32_cannot_tell_apart(backend: str) -> None:
    # 6 million products, which are summed in float32. To token 0, which is e_0, the keys 2 e_0 + x
    # are the nearer the shorter x is: all lengths between .4 and .4001, the shortest last.
    num, width = 300, 400
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((num, width))
    keys[:, 0] = 0.0
    lengths = np.linspace(0.4001, 0.4, num)
    keys *= (lengths / np.linalg.norm(keys, axis=1))[:, None]
    keys[:, 0] = 2.0
    keys[0] = np.eye(width)[0]
    keys = keys.astype(np.float32)
    exact = keys.astype(np.float64)
    nearest = np.argsort(-exact[:, 0] / np.linalg.norm(exact, axis=1), kind="stable")[1:6]
    features = np.eye(num, dtype=np.float32)
    arrays = (features, keys, np.ones(num, np.float32), np.arange(50))
    if backend == "torch":
        torch = pytest.importorskip("torch")
        arrays = tuple(torch.from_numpy(array) for array in arrays)
    merged = np.asarray(take_up(*arrays, 5))
    assert np.flatnonzero(merged[0]).tolist() == sorted([0, *nearest.tolist()])


def test_outliers_by_hand() -> None:
    # Quartiles 2 and 4, limit 4 + 1.5 * 2 = 7.
    assert num_outliers(np.array([1, 2, 3, 4, 100], np.float32)) == 1
    assert num_outliers(np.array([1, 2, 3, 4, 7], np.float32)) == 0
    # Ninths, which round: 7/9 is the limit, not above it.
    assert num_outliers(np.array([1, 2, 3, 4, 7], np.float32) / np.float32(9)) == 0
    assert num_outliers(np.array([1, 2, 3, 4, 7.001], np.float32) / np.float32(9)) == 1
    rng = np.random.default_rng(0)
    values = rng.exponential(size=577).astype(np.float32)
    low, high = np.percentile(values.astype(np.float64), [25, 75])
    assert num_outliers(values) == int((values > high + 1.5 * (high - low)).sum())


def test_adaptive_keeps_the_outliers_up_to_the_budget() -> None:
    signals = make_signals(rows=8, cols=8)
    count = num_outliers(signals.cls_attention.mean(axis=0))
    assert 0 < count < 20
    selection = load("prumerge", adaptive=True).select(signals, 20)
    assert selection.kept_indices.shape == (count,)
    assert load("prumerge", adaptive=True).select(signals, 1).kept_indices.shape == (1,)


def test_adaptive_keeps_one_token_where_there_is_no_outlier() -> None:
    signals = make_signals()
    flat = VisualSignals(
        patch_features=signals.patch_features,
        patch_keys=signals.patch_keys,
        cls_attention=np.linspace(0.1, 0.2, 36, dtype=np.float32),
    )
    assert load("prumerge", adaptive=True).select(flat, 9).kept_indices.tolist() == [35]


def test_the_published_grid() -> None:
    # 29 of 576: step floor(floor(19.9) / 3) = 6.
    assert adaptive_grid(576, 29) == list(range(0, 575, 6))
    assert adaptive_grid(576, 400) == list(range(0, 575))


def test_plus_adds_the_published_grid() -> None:
    signals = make_signals(rows=8, cols=8)
    count = num_outliers(signals.cls_attention.mean(axis=0))
    top = np.argsort(-signals.cls_attention.mean(axis=0), kind="stable")[:count].tolist()
    expected = set(top) | set(adaptive_grid(64, count))
    selection = load("prumerge", adaptive=True, plus=True).select(signals, 63)
    assert set(selection.kept_indices.tolist()) == expected


def test_plus_on_a_budget_is_half_attended_half_grid() -> None:
    signals = make_signals(rows=8, cols=8)
    kept = set(load("prumerge", plus=True).select(signals, 16).kept_indices.tolist())
    top = load("cls_topk").select(signals, 8).kept_indices.tolist()
    assert set(top) <= kept
    assert {4, 12, 20, 28, 36, 44, 52, 60} <= kept | set(top)
    assert len(kept) == 16


def test_the_fused_token_can_be_left_out() -> None:
    signals = make_signals()
    with_it = load("prumerge").select(signals, 9).merged
    without = load("prumerge", fuse_rest=False).select(signals, 9).merged
    np.testing.assert_array_equal(with_it[:-1], without)


def test_neighbours_are_checked() -> None:
    with pytest.raises(ConfigError, match="neighbours is -1"):
        load("prumerge", neighbours=-1)
