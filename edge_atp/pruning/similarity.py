"""Cosine matrices for the methods that compare tokens with each other.

Two guarantees a plain matrix product does not give: tokens with equal vectors get bit-identical
rows and columns (blocked products may differ in the last bit, which would break the tie rule),
and small problems are computed in float64, so that near-ties do not hang on the backend's order
of summation.
"""

from __future__ import annotations

from array_api_compat import array_namespace, device

from edge_atp.types import Array

# Multiply-adds up to which a matrix is computed in float64. Above (576 tokens wider than 50),
# float32 keeps selection within milliseconds.
FLOAT64_WORK = 1 << 24


def working_precision(work: int, *arrays: Array) -> tuple[Array, ...]:
    """The arrays in float64 where one of them is already or ``work`` multiply-adds are few.

    Otherwise all in float32.
    """
    xp = array_namespace(*arrays)
    double = work <= FLOAT64_WORK or any(array.dtype == xp.float64 for array in arrays)
    dtype = xp.float64 if double else xp.float32
    return tuple(xp.astype(array, dtype, copy=False) for array in arrays)


def inverse_norms(vectors: Array) -> Array:
    """(N,) 1 / length of each row; 0 for a zero vector."""
    xp = array_namespace(vectors)
    lengths = xp.sqrt(xp.vecdot(vectors, vectors))
    zero = lengths == 0
    return xp.where(zero, lengths, 1.0 / xp.where(zero, xp.ones_like(lengths), lengths))


def cosine_matrix(vectors: Array) -> Array:
    """Cosine of every pair of rows.

    Args:
        vectors: (N, D), any float dtype.
    Returns:
        (N, N) float64 or float32 (see ``working_precision``). Equal rows of ``vectors`` give
        bit-identical rows and columns. A zero vector has cosine 0 with everything, itself
        included.
    """
    num, width = vectors.shape
    xp = array_namespace(vectors)
    (vectors,) = working_precision(num * num * width, vectors)
    # Scaling the N x N product instead of the N x D input: D is the longer side, and BLAS
    # computes v @ v.T at half the cost of a general product.
    matrix = vectors @ vectors.T
    inverse = inverse_norms(vectors)
    matrix *= inverse[:, None]
    matrix *= inverse[None, :]
    # Exactly 1, so that rounding of a token's own cosine cannot decide a tie.
    _write_diagonal(matrix, xp.astype(inverse > 0, matrix.dtype))
    twins = lowest_twin(vectors)
    if twins is None:
        return matrix
    return xp.take(xp.take(matrix, twins, axis=0), twins, axis=1)


def cosine_cross(rows: Array, columns: Array) -> Array:
    """Cosine of every row vector with every column vector.

    Args:
        rows: (M, D).
        columns: (N, D).
    Returns:
        (M, N); equal vectors of ``columns`` give bit-identical columns.
    """
    xp = array_namespace(rows, columns)
    work = rows.shape[0] * columns.shape[0] * rows.shape[1]
    rows, columns = working_precision(work, rows, columns)
    matrix = rows @ columns.T
    matrix *= inverse_norms(rows)[:, None]
    matrix *= inverse_norms(columns)[None, :]
    twins = lowest_twin(columns)
    return matrix if twins is None else xp.take(matrix, twins, axis=1)


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
