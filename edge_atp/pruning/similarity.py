"""Cosine matrices for the methods that compare tokens with each other.

Three guarantees a plain matrix product does not give: tokens with equal vectors get bit-identical
rows and columns (blocked products may differ in the last bit, which would break the tie rule), the
scaled matrix is symmetric to the last bit, and small problems are computed in float64, so that
near-ties do not hang on the backend's order of summation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from edge_atp.errors import ShapeError
from edge_atp.pruning.ops import as_float32, lies_on_host, on_host
from edge_atp.pruning.scratch import scratch, scratch_rows
from edge_atp.types import Array

# Multiply-adds up to which a matrix is computed in float64 (1 ms of one core). Above, float32
# keeps selection within milliseconds: 576 tokens compared with each other wider than 101.
FLOAT64_WORK = 1 << 24

# Multiply-adds up to which vectors are compared with a few others in float64 (0.2 ms).
FLOAT64_CROSS = 1 << 22

# Products summed in float32; sums of them are float64. Halves the error of a cosine at 1024 wide
# (to 6e-9, 3e-8 at most) for a fifth more time; float64 takes twice the time.
CHUNK = 128

# Vectors converted at a time.
BLOCK = 64


def working_dtype(work: int, *arrays: Array) -> Any:
    """float64 where one of the arrays is already or ``work`` multiply-adds are few, or float32."""
    xp = array_namespace(*arrays)
    double = work <= FLOAT64_WORK or any(array.dtype == xp.float64 for array in arrays)
    return xp.float64 if double else xp.float32


def in_blocks(vectors: Array, dtype: Any, block: int = BLOCK) -> Iterator[Array]:
    """The (N, D) vectors in ``dtype``: at once, or in blocks where the host has to convert them.

    A converted copy of all vectors is memory asked of the system, which costs as much as the
    product it is for. A block is valid until the next one.
    """
    xp = array_namespace(vectors)
    num, width = vectors.shape
    if vectors.dtype == dtype or not lies_on_host(vectors):
        yield xp.astype(vectors, dtype, copy=False)
        return
    for start in range(0, num, block):
        part = vectors[start : start + block, :]
        if isinstance(part, np.ndarray):
            converted = scratch("converted", (block, width), dtype)[: len(part)]
            converted[:] = part
            yield converted
        else:
            yield xp.astype(part, dtype)


def inverse_norms(vectors: Array) -> Array:
    """(N,) 1 / length of each row; 0 for a zero vector.

    Raises:
        ShapeError: a row is so long that its square overflows.
    """
    return _inverse_roots(array_namespace(vectors).vecdot(vectors, vectors))


def _inverse_roots(squares: Array) -> Array:
    """``inverse_norms`` of vectors with those squared lengths (N,)."""
    xp = array_namespace(squares)
    lengths = xp.sqrt(squares)
    if float(xp.max(lengths)) == float("inf"):
        raise ShapeError(
            f"a token's length overflows {squares.dtype}; check the encoder's precision and scale"
        )
    zero = lengths == 0
    return xp.where(zero, lengths, 1.0 / xp.where(zero, xp.ones_like(lengths), lengths))


def cosine_matrix(vectors: Array) -> Array:
    """Cosine of every pair of rows.

    Args:
        vectors: (N, D), any float dtype.
    Returns:
        (N, N) float64 or float32 (see ``working_dtype``), symmetric to the last bit. Equal rows
        of ``vectors`` give bit-identical rows and columns. A zero vector has cosine 0 with
        everything, itself included.
    """
    return matrix_and_twins(vectors)[0]


def matrix_and_twins(vectors: Array) -> tuple[Array, Array | None]:
    """``cosine_matrix`` of the vectors, and their ``lowest_twin``."""
    xp = array_namespace(vectors)
    dtype = working_dtype(matrix_work(*vectors.shape), vectors)
    vectors = xp.astype(vectors, dtype, copy=False)
    # BLAS computes v @ v.T at half the cost of a general product.
    return _to_cosines(vectors @ vectors.T, vectors)


def scratch_cosines(
    vectors: Array, rows_above: int = 0, dtype: Any = None
) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """The ``cosine_matrix`` on the host, in memory that the thread's next call uses again.

    Args:
        vectors: (N, D); on a device, the matrix is computed there and fetched.
        rows_above: rows left for the caller before the matrix, (rows_above + N, N) in all:
            joining them later would copy it.
        dtype: np.float64 for a matrix in float64 whatever its size.
    Returns:
        The matrix, and the ``lowest_twin`` of the vectors.
    """
    num, width = vectors.shape
    if not lies_on_host(vectors):
        if dtype is not None:
            vectors = array_namespace(vectors).astype(vectors, array_namespace(vectors).float64)
        matrix, twins = matrix_and_twins(vectors)
        above = np.empty((rows_above, num), on_host(matrix).dtype)
        joined = np.concatenate([above, on_host(matrix)])
        return joined, None if twins is None else on_host(twins)
    hosted = on_host(vectors)
    wanted = dtype or working_dtype(matrix_work(num, width), hosted)
    if hosted.dtype != wanted:
        hosted, source = scratch("vectors", hosted.shape, wanted), hosted
        hosted[:] = source
    joined = scratch("cosines", (rows_above + num, num), hosted.dtype)
    matrix = joined[rows_above:]
    cosines, twins = _to_cosines(np.matmul(hosted, hosted.T, out=matrix), hosted)
    if cosines is not matrix:
        matrix[:] = cosines
    return joined, twins


def _to_cosines(matrix: Array, vectors: Array) -> tuple[Array, Array | None]:
    """Scale the products of all vectors, in place; see ``cosine_matrix``."""
    xp = array_namespace(matrix)
    # Scaling the N x N product instead of the N x D input: D is the longer side.
    inverse = inverse_norms(vectors)
    # One factor a pair, so that (i, j) and (j, i) stay equal: two tokens that are each other's
    # nearest tie.
    if isinstance(matrix, np.ndarray):
        factors = scratch_rows("factors", len(inverse), matrix.dtype)
        for start in range(0, len(matrix), len(factors)):
            rows = matrix[start : start + len(factors)]
            own = inverse[start : start + len(factors), None]
            rows *= np.multiply(own, inverse, out=factors[: len(rows)])
    else:
        matrix *= inverse[:, None] * inverse[None, :]
    # Exactly 1, so that rounding of a token's own cosine cannot decide a tie.
    _write_diagonal(matrix, xp.astype(inverse > 0, matrix.dtype))
    twins = lowest_twin(vectors)
    if twins is not None:
        matrix = xp.take(xp.take(matrix, twins, axis=0), twins, axis=1)
    return matrix, twins


def snap_cosines(matrix: Array) -> Array:
    """``ops.snap`` of float64 cosines, in place: tokens along one line have equal cosines."""
    if matrix.dtype == array_namespace(matrix).float64:
        matrix += 6144.0
        matrix -= 6144.0
    return matrix


def matrix_work(num: int, width: int) -> int:
    """Multiply-adds of an N x N matrix of cosines: BLAS computes a symmetric product by half."""
    return num * num * width // 2


def cosine_cross(rows: Array, columns: Array, exact: bool = False) -> Array:
    """Cosine of every row vector with every column vector.

    Args:
        rows: (M, D).
        columns: (N, D).
        exact: computed in float64 however many they are.
    Returns:
        (M, N) float64; equal vectors of ``columns`` give bit-identical columns.
    """
    xp = array_namespace(rows, columns)
    work = rows.shape[0] * columns.shape[0] * rows.shape[1]
    exact = exact or work <= FLOAT64_CROSS or xp.float64 in (rows.dtype, columns.dtype)
    # BLAS packs its right factor: with the fewer vectors there it takes two thirds of the time.
    rows_are_fewer = rows.shape[0] <= columns.shape[0]
    fewer, more = (rows, columns) if rows_are_fewer else (columns, rows)
    matrix, inverse = _products(more, fewer) if exact else _products_in_chunks(more, fewer)
    matrix *= inverse[:, None]
    if exact:
        snap_cosines(matrix)
    matrix = matrix.T if rows_are_fewer else matrix
    twins = lowest_twin(columns)
    return matrix if twins is None else xp.take(matrix, twins, axis=1)


def _products(more: Array, fewer: Array) -> tuple[Array, Array]:
    """(N, M) products of the vectors ``more`` (N, D) with the directions of ``fewer`` (M, D), and
    (N,) ``inverse_norms`` of ``more``, in float64."""
    xp = array_namespace(more, fewer)
    fewer = xp.astype(fewer, xp.float64, copy=False)
    directions = (fewer * inverse_norms(fewer)[:, None]).T
    block = max(BLOCK, fewer.shape[0])  # BLAS packs the directions for every block anew
    parts = [(b @ directions, xp.vecdot(b, b)) for b in in_blocks(more, xp.float64, block)]
    products, squares = parts[0] if len(parts) == 1 else map(xp.concat, zip(*parts, strict=True))
    return products, _inverse_roots(squares)


def _products_in_chunks(more: Array, fewer: Array) -> tuple[Array, Array]:
    """``_products`` from float32 sums of CHUNK products each."""
    xp = array_namespace(more, fewer)
    more, fewer = as_float32(more), as_float32(fewer)
    matrix = xp.astype(more[:, :CHUNK] @ fewer[:, :CHUNK].T, xp.float64, copy=False)
    for start in range(CHUNK, more.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        matrix += more[:, part] @ fewer[:, part].T
    matrix *= inverse_norms(fewer)[None, :]
    return matrix, inverse_norms(more)


def without_self(matrix: Array) -> Array:
    """The square matrix itself with -inf written on its diagonal."""
    _write_diagonal(matrix, float("-inf"))
    return matrix


def lowest_twin(vectors: Array) -> Array | None:
    """For each row the lowest index of a row equal to it; None where all rows differ.

    Args:
        vectors: (N, D).
    Returns:
        (N,) int64 or None.

    Rows are compared through one weighted sum each and verified element by element, so the cost
    is one pass over the vectors.
    """
    xp = array_namespace(vectors)
    if vectors.dtype != xp.float64:
        vectors = as_float32(vectors)  # half precision cannot hold a sum of many values
    width = vectors.shape[1]
    where = device(vectors)
    # Irrational steps: a permuted or negated row does not collide with the original.
    weights = xp.cos(xp.arange(width, dtype=vectors.dtype, device=where) * 0.7548776662 + 0.3)
    key = xp.vecdot(vectors, weights[None, :])
    order = xp.argsort(key, stable=True)
    sorted_key = xp.take(key, order)
    same = sorted_key[1:] == sorted_key[:-1]
    if not bool(xp.any(same)):
        return None
    ordered = xp.take(vectors, order, axis=0)
    same = same & xp.all(ordered[1:, :] == ordered[:-1, :], axis=1)
    if not bool(xp.any(same)):
        return None  # different rows whose sums collide
    starts = xp.concat([xp.ones(1, dtype=xp.bool, device=where), ~same])
    group = xp.cumulative_sum(xp.astype(starts, xp.int64)) - 1
    first_of_group = xp.take(order, xp.nonzero(starts)[0])
    return xp.take(xp.take(first_of_group, group), xp.argsort(order))


def _write_diagonal(matrix: Array, values: Array | float) -> None:
    xp = array_namespace(matrix)
    num = matrix.shape[0]
    # A strided view: a mask of N x N would cost more than the greedy search that follows.
    xp.reshape(matrix, (num * num,), copy=False)[:: num + 1] = values
