"""Rows of a cosine matrix for greedy searches, which read one row a step and run on the host.

K rows of wide vectors cost K N D multiply-adds when each is computed as it is asked for, the whole
matrix N^2 D / 2: with few rows the first is faster, although it reads all vectors anew each time.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_atp.pruning.ops import as_float32, lies_on_host, on_host
from edge_atp.pruning.similarity import (
    FLOAT64_WORK,
    inverse_norms,
    lowest_twin,
    matrix_work,
    scratch_cosines,
)
from edge_atp.types import Array

# Share of the rows at which both ways take the same time: 64 to 120 of 576 rows, 1024 and 4096
# wide.
LAZY_SHARE = 1 / 5

# Vectors that no cache holds are read from memory for every row: at 2880 x 4096 (47 MB) 320 rows
# take twice the time of the whole matrix.
LAZY_BYTES = 1 << 24


class Rows(Protocol):
    """Rows of an (N, N) symmetric matrix S."""

    @property
    def diagonal(self) -> NDArray[Any]:
        """(N,) S[i, i]."""

    @property
    def twins(self) -> NDArray[np.int64] | None:
        """(N,) lowest index with the same row; None where all differ or nobody knows."""

    def row(self, index: int) -> NDArray[Any]:
        """(N,) S[index]; not to be written to."""

    def mean(self) -> NDArray[Any]:
        """(N,) mean of each row, its own element included."""


class MatrixRows:
    """Rows of a matrix that is there; see ``Rows``."""

    def __init__(self, matrix: Array, twins: Array | None = None) -> None:
        self._matrix = on_host(matrix)
        self.diagonal: NDArray[Any] = np.diagonal(self._matrix)
        self.twins: NDArray[np.int64] | None = None if twins is None else on_host(twins)

    def row(self, index: int) -> NDArray[Any]:
        """(N,) one row, not copied."""
        row: NDArray[Any] = self._matrix[index]
        return row

    def mean(self) -> NDArray[Any]:
        """(N,) mean of each row."""
        means: NDArray[Any] = self._matrix.mean(axis=1)
        return means


class LazyCosineRows:
    """Cosines of (N, D) float32 vectors, a row at a time; equal vectors give equal bits.

    Where both rows of a pair are asked for, both hold its value of the first one, so that the
    matrix they come from is symmetric to the last bit.
    """

    def __init__(self, vectors: NDArray[np.float32], num_rows: int) -> None:
        self._vectors = np.ascontiguousarray(vectors)
        self._inverse: NDArray[np.float32] = inverse_norms(self._vectors)
        # As in cosine_matrix: exactly 1, or 0 for a zero vector.
        self.diagonal: NDArray[Any] = (self._inverse > 0).astype(np.float32)
        self.twins: NDArray[np.int64] | None = lowest_twin(self._vectors)
        self._asked = np.zeros(num_rows, np.int64)
        self._given = np.empty((num_rows, len(vectors)), np.float32)
        self._count = 0

    def row(self, index: int) -> NDArray[Any]:
        """(N,) cosines of one token with all: one matrix-vector product."""
        row: NDArray[Any] = self._vectors @ self._vectors[index]
        row *= self._inverse * self._inverse[index]
        row[index] = self.diagonal[index]
        count = self._count
        row[self._asked[:count]] = self._given[:count, index]
        row = row if self.twins is None else row[self.twins]
        if count < len(self._given):
            self._given[count], self._asked[count] = row, index
            self._count += 1
        return row

    def mean(self) -> NDArray[Any]:
        """(N,) mean cosine of each token: its product with the sum of all unit vectors."""
        means: NDArray[Any] = self._vectors @ (self._inverse @ self._vectors)
        means *= self._inverse / np.float32(len(means))
        return means if self.twins is None else means[self.twins]


def cosine_rows(vectors: Array, num_rows: int) -> Rows:
    """Rows of the cosine matrix of (N, D) vectors, computed in the cheaper way.

    Args:
        vectors: any float dtype; on a device the matrix is computed there and fetched.
        num_rows: how many rows will be asked for.
    Returns:
        Rows that are valid until this thread asks for others.
    """
    num, width = vectors.shape
    few = num_rows <= num * LAZY_SHARE and matrix_work(num, width) > FLOAT64_WORK
    if few and 4 * num * width <= LAZY_BYTES and lies_on_host(vectors):
        hosted = on_host(vectors)
        if hosted.dtype != np.float64:
            return LazyCosineRows(as_float32(hosted), num_rows)
    return MatrixRows(*scratch_cosines(vectors))


def as_rows(similarity: Rows | Array) -> Rows:
    """A matrix as its rows; rows unchanged."""
    if isinstance(similarity, (MatrixRows, LazyCosineRows)):
        return similarity
    return MatrixRows(similarity)
