"""Shared arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_atp.errors import ShapeError
from edge_atp.pruning.ops import cosine, head_mean, min_max, snap, softmax, top_k
from edge_atp.pruning.similarity import cosine_cross, cosine_matrix, lowest_twin


def test_top_k_breaks_ties_by_index() -> None:
    scores = np.array([0.5, 1.0, 1.0, 0.5, 1.0], np.float32)
    assert top_k(scores, 4).tolist() == [1, 2, 4, 0]
    torch = pytest.importorskip("torch")
    assert top_k(torch.from_numpy(scores), 4).tolist() == [1, 2, 4, 0]


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.data())
def test_top_k_is_a_stable_descending_sort(values: list[int], data) -> None:
    k = data.draw(st.integers(0, len(values)))
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    assert top_k(np.array(values, np.float32), k).tolist() == expected


def test_min_max() -> None:
    np.testing.assert_allclose(min_max(np.array([2.0, 4.0, 3.0])), [0, 1, 0.5])
    np.testing.assert_array_equal(min_max(np.full(3, 7.0)), np.zeros(3))


def test_softmax_survives_large_logits() -> None:
    np.testing.assert_allclose(softmax(np.array([[1e4, 1e4], [0.0, -1e4]])), [[0.5, 0.5], [1, 0]])


def test_head_mean() -> None:
    assert head_mean(np.ones((2, 3), np.float16)).dtype == np.float32
    np.testing.assert_allclose(head_mean(np.array([[1.0, 3.0], [3.0, 3.0]])), [2, 3])


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_equal_means_are_equal_in_any_order_of_summation(backend: str) -> None:
    # In float32, .1 + .6 + .7 is not .7 + .6 + .1, and a vector loop's tail adds in another order.
    heads = np.full((21, 40), 1 / 40, np.float32)
    heads[:3] = np.array([0.1, 0.6, 0.7], np.float32)[:, None]
    heads[:3, 1::2] = heads[2::-1, 1::2]
    if backend == "torch":
        heads = pytest.importorskip("torch").from_numpy(heads)
    assert len(set(head_mean(heads).tolist())) == 1
    assert top_k(head_mean(heads), 3).tolist() == [0, 1, 2]


def test_cosine_of_zero_is_zero() -> None:
    vectors = np.array([[0, 0], [3, 4], [-1, 0]], np.float32)
    result = cosine(vectors, np.array([1, 0], np.float32))
    np.testing.assert_allclose(result, [0, 0.6, -1], atol=1e-7)
    np.testing.assert_array_equal(cosine(vectors, np.zeros(2, np.float32)), np.zeros(3))


def test_a_zero_among_many_wide_vectors_and_values_that_are_not_finite() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((300, 700)).astype(np.float32)
    text = rng.standard_normal(700).astype(np.float32)
    double = vectors.astype(np.float64)
    expected = double @ text / np.linalg.norm(double, axis=1) / np.linalg.norm(text)
    np.testing.assert_allclose(cosine(vectors, text), expected, atol=3e-7)
    vectors[7], expected[7] = 0.0, 0.0
    np.testing.assert_allclose(cosine(vectors, text), expected, atol=1e-9)
    np.testing.assert_array_equal(cosine(vectors, np.zeros_like(text)), np.zeros(300))
    for bad in (np.nan, np.inf, -np.inf):
        vectors[299, 3] = bad
        with pytest.raises(ShapeError, match="patch_embeds or text_embed"):
            cosine(vectors, text)


@pytest.mark.parametrize("length", [1e-25, 1e-22, 1e25])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_one_of_many_wide_vectors_may_be_as_short_or_long_as_float32_allows(
    length: float, backend: str
) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((300, 700)).astype(np.float32)
    text = rng.standard_normal(700).astype(np.float32)
    vectors[7] *= np.float32(length)
    double = vectors.astype(np.float64)
    expected = double @ text / np.linalg.norm(double, axis=1) / np.linalg.norm(text)
    if backend == "torch":
        torch = pytest.importorskip("torch")
        vectors, text = torch.from_numpy(vectors), torch.from_numpy(text)
    np.testing.assert_allclose(np.asarray(cosine(vectors, text)), expected, atol=3e-7)


def test_snap_joins_what_rounding_parts_and_keeps_the_rest() -> None:
    values = np.array([0.1 + 0.2, 0.3, 0.3 + 1e-9, -0.3, 0.0])
    snapped = snap(values)
    assert snapped[0] == snapped[1] != snapped[2]
    np.testing.assert_allclose(snapped, values, atol=1e-12)
    np.testing.assert_allclose(snap(values * 1e6), values * 1e6, atol=1e-6)
    assert snap(np.array([0.1], np.float32)).dtype == np.float32
    np.testing.assert_array_equal(snap(np.zeros(3)), np.zeros(3))


@pytest.mark.parametrize(("num", "width"), [(30, 16), (200, 1024)])
def test_cosine_matrix(num: int, width: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((num, width)).astype(np.float32)
    vectors[3] = 0.0
    unit = vectors.astype(np.float64)
    lengths = np.linalg.norm(unit, axis=1, keepdims=True)
    unit /= np.where(lengths > 0, lengths, 1)
    matrix = cosine_matrix(vectors)
    np.testing.assert_allclose(matrix, unit @ unit.T, atol=2e-6)
    ones = np.ones(num)
    ones[3] = 0.0
    np.testing.assert_array_equal(np.diagonal(matrix), ones)
    np.testing.assert_allclose(cosine_cross(vectors[:9], vectors), (unit @ unit.T)[:9], atol=2e-6)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_few_vectors_against_many_wide_ones(backend: str) -> None:
    # Summed in pieces of 128 products, the last one ragged.
    rng = np.random.default_rng(2)
    columns = rng.standard_normal((400, 1099)).astype(np.float32)
    columns[50], columns[60] = 0.0, columns[3]
    rows = columns[40:60] + rng.standard_normal((20, 1099)).astype(np.float32)
    unit = [
        v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-30)
        for v in (rows.astype(np.float64), columns.astype(np.float64))
    ]
    if backend == "torch":
        torch = pytest.importorskip("torch")
        rows, columns = torch.from_numpy(rows), torch.from_numpy(columns)
    matrix = np.asarray(cosine_cross(rows, columns))
    assert matrix.shape == (20, 400)
    np.testing.assert_allclose(matrix, unit[0] @ unit[1].T, atol=1e-6)
    np.testing.assert_array_equal(matrix[:, 60], matrix[:, 3])


def test_small_matrices_are_float64_and_large_ones_float32() -> None:
    assert cosine_matrix(np.ones((10, 4), np.float16)).dtype == np.float64
    assert cosine_matrix(np.ones((200, 1024), np.float32)).dtype == np.float32


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_equal_rows_have_equal_bits(backend: str) -> None:
    vectors = np.random.default_rng(1).standard_normal((203, 1021)).astype(np.float32)
    vectors[100:150] = vectors[:50]
    vectors[202] = vectors[7]
    array = vectors
    if backend == "torch":
        torch = pytest.importorskip("torch")
        array = torch.from_numpy(vectors)
    matrix = np.asarray(cosine_matrix(array))
    np.testing.assert_array_equal(matrix[100:150], matrix[:50])
    np.testing.assert_array_equal(matrix[:, 202], matrix[:, 7])
    assert matrix[202, 107] == 1.0
    twins = np.asarray(lowest_twin(array))
    expected = np.arange(203)
    expected[100:150] = np.arange(50)
    expected[202] = 7
    np.testing.assert_array_equal(twins, expected)


def test_distinct_rows_have_no_twin() -> None:
    rows = np.array([[1, 2], [2, 1], [-1, -2], [1, 2.0000002]], np.float32)
    assert lowest_twin(rows) is None
