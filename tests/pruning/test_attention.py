"""Attention rows from queries and keys."""

from __future__ import annotations

import numpy as np
import pytest

from edge_atp.errors import ShapeError
from edge_atp.pruning.attention import attention_rows, received


def test_by_hand() -> None:
    # One head, width 4: logits (2, 0) * 4^-0.5 = (1, 0); softmax = e/(e+1), 1/(e+1).
    queries = np.array([[[1, 1, 0, 0]]], np.float32)
    keys = np.array([[[1, 1, 0, 0], [0, 0, 1, 1]]], np.float32)
    share = np.e / (np.e + 1)
    np.testing.assert_allclose(attention_rows(queries, keys), [[[share, 1 - share]]], atol=1e-6)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_is_torchs_attention_with_grouped_queries_and_a_mask(backend: str) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((6, 4, 8)).astype(np.float32)
    keys = rng.standard_normal((2, 9, 8)).astype(np.float32)
    visible = np.tril(np.ones((4, 9), bool), 5)
    wide = torch.from_numpy(np.repeat(keys, 3, axis=0))
    expected = torch.nn.functional.scaled_dot_product_attention(
        torch.from_numpy(queries), wide, torch.eye(9).expand(6, 9, 9), torch.from_numpy(visible)
    )
    arrays = (queries, keys, visible)
    if backend == "torch":
        arrays = tuple(torch.from_numpy(a) for a in arrays)
    rows = attention_rows(arrays[0], arrays[1], visible=arrays[2])
    np.testing.assert_allclose(np.asarray(rows), expected.numpy(), atol=1e-6)


def test_a_mask_may_be_shared_by_all_rows() -> None:
    rng = np.random.default_rng(1)
    queries, keys = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 5, 4))
    rows = attention_rows(queries, keys, visible=np.array([True, True, False, False, True]))
    np.testing.assert_array_equal(rows[..., 2:4], 0)
    np.testing.assert_allclose(rows.sum(axis=-1), 1, atol=1e-6)


def test_a_row_that_sees_nothing_is_uniform() -> None:
    rows = attention_rows(np.ones((1, 1, 4)), np.ones((1, 5, 4)), visible=np.zeros((1, 5), bool))
    np.testing.assert_allclose(rows, np.full((1, 1, 5), 0.2), atol=1e-6)


def test_shapes_must_fit() -> None:
    with pytest.raises(ShapeError, match="multiple of kv_heads"):
        attention_rows(np.ones((3, 1, 4)), np.ones((2, 5, 4)))
    with pytest.raises(ShapeError, match="last axes equal"):
        attention_rows(np.ones((2, 1, 4)), np.ones((2, 5, 8)))


def test_received_is_the_mean_column() -> None:
    attention = np.array([[[0.2, 0.8], [0.4, 0.6]], [[1.0, 0.0], [0.0, 1.0]]], np.float32)
    np.testing.assert_allclose(received(attention), [0.4, 0.6], atol=1e-7)
