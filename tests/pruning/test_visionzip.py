"""VisionZip: dominant and contextual tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from pruning_cases import make_signals

from edge_atp.errors import ConfigError, MissingSignalError, ShapeError
from edge_atp.pruning import load
from edge_atp.pruning.visionzip import contextual_targets, most_similar
from edge_atp.types import VisualSignals


def reference(signals: VisualSignals, dominant: int, contextual: int):
    """The published procedure, one token at a time."""
    attention = signals.cls_attention.mean(axis=0)
    top = sorted(range(len(attention)), key=lambda i: (-attention[i], i))[:dominant]
    rest = [i for i in range(len(attention)) if i not in top]
    step = max(1, len(rest) // contextual)
    targets = rest[::step][:contextual]
    keys = signals.patch_keys.astype(np.float64)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    assigned: dict[int, list[int]] = {t: [] for t in targets}
    for i in rest:
        if i not in assigned:
            assigned[targets[int(np.argmax([keys[i] @ keys[t] for t in targets]))]].append(i)
    rows = {i: signals.patch_features[i].astype(np.float64) for i in top}
    for target, others in assigned.items():
        rows[target] = signals.patch_features[target].astype(np.float64)
        if others:
            rows[target] = rows[target] + signals.patch_features[others].mean(axis=0)
    return sorted(rows), np.stack([rows[i] for i in sorted(rows)])


@pytest.mark.parametrize("seed", range(4))
def test_matches_the_procedure_written_out(seed: int) -> None:
    signals = make_signals(rows=10, cols=10, seed=seed)
    selection = load("visionzip").select(signals, 32)  # 27 + 5, as 54 + 10 of 64
    kept, merged = reference(signals, 27, 5)
    assert selection.kept_indices.tolist() == kept
    np.testing.assert_allclose(selection.merged, merged, atol=1e-5)


@pytest.mark.parametrize(("num_kept", "contextual"), [(64, 10), (128, 20), (192, 30), (2, 1)])
def test_the_published_splits(num_kept: int, contextual: int) -> None:
    signals = make_signals(rows=24, cols=24)
    selection = load("visionzip").select(signals, num_kept)
    attention = signals.cls_attention.mean(axis=0)
    top = np.argsort(-attention, kind="stable")[: num_kept - contextual]
    assert set(top.tolist()) <= set(selection.kept_indices.tolist())
    unchanged = np.all(selection.merged == signals.patch_features[selection.kept_indices], axis=1)
    assert unchanged.sum() == num_kept - contextual


def test_by_hand() -> None:
    signals = VisualSignals(
        cls_attention=np.array([0.1, 0.5, 0.1, 0.1, 0.2], np.float32),
        patch_features=np.array([[1], [2], [4], [8], [16]], np.float32),
        patch_keys=np.array([[1, 0], [1, 1], [0, 1], [1, 0.1], [0.1, 1]], np.float32),
    )
    # Dominant: 1. Rest 0, 2, 3, 4; two targets at stride 2: 0 and 3. 2 and 4 point along the
    # second axis: 3 is nearer than 0 to both. 3 becomes 8 + (4 + 16) / 2.
    selection = load("visionzip", contextual_ratio=2 / 3).select(signals, 3)
    assert selection.kept_indices.tolist() == [0, 1, 3]
    np.testing.assert_allclose(selection.merged[:, 0], [1, 2, 18])
    assert selection.order.tolist() == [1, 0, 3]


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_targets_that_float32_cannot_tell_apart(backend: str) -> None:
    # 5 million products, which are summed in float32: cosines about 1e-8 apart.
    rng = np.random.default_rng(0)
    rows, columns = rng.standard_normal((600, 1024)), rng.standard_normal((8, 1024))
    columns[1:] = columns[0] + 1e-6 * columns[1:]
    rows = (rows + columns[0]).astype(np.float32)
    columns = columns.astype(np.float32)
    units = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in map(np.float64, (rows, columns))]
    expected = (units[0] @ units[1].T).argmax(axis=1)
    if backend == "torch":
        torch = pytest.importorskip("torch")
        rows, columns = torch.from_numpy(rows), torch.from_numpy(columns)
    assert np.asarray(most_similar(rows, columns)).tolist() == expected.tolist()


def test_targets_are_at_the_published_stride() -> None:
    assert contextual_targets(522, 10) == list(range(0, 520, 52))
    assert contextual_targets(3, 3) == [0, 1, 2]
    assert contextual_targets(5, 4) == [0, 1, 2, 3]


def test_cls_takes_one_of_the_budget_where_it_is_kept() -> None:
    signals = make_signals(rows=10, cols=10)
    selection = load("visionzip", keep_cls=True).select(signals, 32)
    assert selection.kept_indices.shape == (31,)
    assert selection.merged.shape == (32, 24)
    np.testing.assert_array_equal(selection.merged[0], signals.cls_feature)
    kept, merged = reference(signals, 26, 5)
    assert selection.kept_indices.tolist() == kept
    np.testing.assert_allclose(selection.merged[1:], merged, atol=1e-5)


def test_keeping_cls_needs_its_feature() -> None:
    pruner = load("visionzip", keep_cls=True)
    signals = make_signals()
    with pytest.raises(MissingSignalError, match="cls_feature"):
        pruner.select(dataclasses.replace(signals, cls_feature=None), 8)
    bad = dataclasses.replace(signals, cls_feature=np.full(24, np.nan, np.float32))
    with pytest.raises(ShapeError, match="cls_feature"):
        pruner.select(bad, 8)


def test_without_contextual_tokens_it_is_cls_topk() -> None:
    signals = make_signals()
    got = load("visionzip", contextual_ratio=0.0).select(signals, 9)
    assert got.kept_indices.tolist() == load("cls_topk").select(signals, 9).kept_indices.tolist()


def test_the_share_is_checked() -> None:
    with pytest.raises(ConfigError, match="contextual_ratio is 1"):
        load("visionzip", contextual_ratio=1.0)
