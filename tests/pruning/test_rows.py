"""Rows of the cosine matrix, computed one by one or all at once."""

from __future__ import annotations

import numpy as np
import pytest
from pruning_cases import make_signals, to_torch

from edge_atp.pruning import load
from edge_atp.pruning.rows import LAZY_BYTES, LazyCosineRows, MatrixRows, as_rows, cosine_rows
from edge_atp.pruning.scratch import ALIGNMENT, MAX_BYTES, scratch
from edge_atp.pruning.similarity import cosine_matrix, scratch_cosines

RNG = np.random.default_rng(0)
WIDE = RNG.standard_normal((300, 1024)).astype(np.float32)


def test_few_rows_of_wide_vectors_are_computed_one_by_one() -> None:
    assert isinstance(cosine_rows(WIDE, 60), LazyCosineRows)
    assert isinstance(cosine_rows(WIDE, 61), MatrixRows)
    assert isinstance(cosine_rows(WIDE[:, :64], 10), MatrixRows)
    assert isinstance(cosine_rows(WIDE.astype(np.float64), 10), MatrixRows)
    no_cache_holds = np.ones((513, LAZY_BYTES // 4 // 512), np.float32)
    assert isinstance(cosine_rows(no_cache_holds, 3), MatrixRows)


def test_both_ways_give_the_same_rows() -> None:
    vectors = WIDE.copy()
    vectors[7] = 0.0
    lazy, whole = cosine_rows(vectors, 10), as_rows(cosine_matrix(vectors))
    np.testing.assert_array_equal(lazy.diagonal, whole.diagonal)
    np.testing.assert_allclose(lazy.mean(), whole.mean(), atol=1e-6)
    for index in (0, 7, 299):
        np.testing.assert_allclose(lazy.row(index), whole.row(index), atol=1e-6)
    assert lazy.diagonal[7] == 0.0
    assert not lazy.row(7).any()


def test_equal_vectors_have_equal_bits() -> None:
    vectors = WIDE[RNG.integers(0, 40, 299)]
    rows = cosine_rows(vectors, 10)
    assert rows.twins is not None
    for values in (rows.row(5), rows.row(298), rows.mean()):
        np.testing.assert_array_equal(values, values[rows.twins])
    assert rows.row(5)[np.flatnonzero(rows.twins == rows.twins[5])].tolist() == [1.0] * int(
        (rows.twins == rows.twins[5]).sum()
    )


def test_a_pair_has_one_cosine_whichever_is_asked_first() -> None:
    vectors = WIDE.copy()
    vectors[250] = vectors[20]
    rows = cosine_rows(vectors, 50)
    got = {index: rows.row(index).copy() for index in RNG.permutation(300)[:50].tolist()}
    for first, row in got.items():
        for second, other in got.items():
            assert row[second] == other[first]
    matrix = cosine_matrix(vectors)
    np.testing.assert_array_equal(matrix, matrix.T)


@pytest.mark.parametrize("width", [16, 1024])
def test_the_matrix_below_other_rows(width: int) -> None:
    vectors = WIDE[:, :width].copy()
    vectors[9] = vectors[4]
    joined, twins = scratch_cosines(vectors, rows_above=3)
    np.testing.assert_array_equal(joined[3:], cosine_matrix(vectors))
    assert twins is not None
    assert twins[9] == 4
    exact, _ = scratch_cosines(vectors, dtype=np.float64)
    np.testing.assert_allclose(exact, cosine_matrix(vectors), atol=1e-6)


def test_scratch_memory_is_used_again_and_never_shared_with_a_result() -> None:
    first = scratch("test", (4, 5), np.float32)
    assert np.shares_memory(first, scratch("test", (3, 2), np.float64))
    assert not np.shares_memory(first, scratch("other", (4, 5), np.float32))
    assert scratch("test", (40, 50), np.float32).ctypes.data % ALIGNMENT == 0
    large = (MAX_BYTES // 4 + 1,)
    assert not np.shares_memory(scratch("test", large, np.float32), scratch("test", large, "f4"))
    for method in ("divprune", "mmtok", "vispruner", "cdpruner", "trimtokenator"):
        before = load(method).select(make_signals(seed=1), 9)
        kept = before.order.tolist()
        load(method).select(make_signals(seed=2), 9)
        assert before.order.tolist() == kept


@pytest.mark.parametrize("method", ["trimtokenator", "cdpruner"])
def test_methods_choose_the_same_either_way(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(4):
        signals = make_signals(rows=15, cols=20, width=1000, seed=seed)
        lazy = load(method).select(signals, 40).order.tolist()
        with monkeypatch.context() as patch:
            patch.setattr("edge_atp.pruning.rows.LAZY_SHARE", 0.0)
            assert load(method).select(signals, 40).order.tolist() == lazy


def test_torch_vectors_on_the_cpu_are_read_where_they_are() -> None:
    torch = pytest.importorskip("torch")
    vectors = torch.from_numpy(WIDE)
    assert isinstance(cosine_rows(vectors, 10), LazyCosineRows)
    np.testing.assert_array_equal(cosine_rows(vectors, 10).row(3), cosine_rows(WIDE, 10).row(3))
    signals = to_torch(make_signals(rows=15, cols=20, width=1000))
    kept = load("cdpruner").select(signals, 40).kept_indices
    assert isinstance(kept, torch.Tensor)
