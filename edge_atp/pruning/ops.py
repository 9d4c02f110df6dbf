"""Array building blocks shared by pruning methods (NumPy and torch through the array API).

Scores are compared in float32 after float32-or-better arithmetic, and every ranking is a stable
descending sort, so ties go to the lowest index on every backend.
"""

from __future__ import annotations

from array_api_compat import array_namespace

from edge_atp.types import Array


def top_k(scores: Array, k: int) -> Array:
    """Indices of the k largest scores, best first, ties to the lowest index.

    Args:
        scores: (N,) finite.
        k: in [0, N].
    Returns:
        (k,) int64.
    """
    xp = array_namespace(scores)
    # Sorting the negated scores ascending keeps stability; descending sorts of some backends
    # reverse equal elements.
    order = xp.argsort(-scores, stable=True)
    return xp.astype(order[:k], xp.int64)


def min_max(scores: Array) -> Array:
    """Scale (N,) linearly to [0, 1]; a constant input becomes zeros."""
    xp = array_namespace(scores)
    low = xp.min(scores)
    span = xp.max(scores) - low
    if float(span) == 0.0:
        return xp.zeros_like(scores)
    return (scores - low) / span


def head_mean(attention: Array) -> Array:
    """Mean over heads: (heads, N) or (N,) -> (N,) float32."""
    xp = array_namespace(attention)
    attention = xp.astype(attention, xp.float32)
    return xp.mean(attention, axis=0) if attention.ndim == 2 else attention


def cosine(vectors: Array, reference: Array) -> Array:
    """Cosine of each row with one vector; a zero vector has cosine 0 with everything.

    Args:
        vectors: (N, P).
        reference: (P,).
    Returns:
        (N,) float32.
    """
    xp = array_namespace(vectors, reference)
    vectors = xp.astype(vectors, xp.float32)
    reference = xp.astype(reference, xp.float32)
    # One dot product a row: identical rows give identical bits, so duplicates tie exactly.
    dots = xp.vecdot(vectors, reference[None, :])
    norms = xp.sqrt(xp.vecdot(vectors, vectors)) * xp.sqrt(xp.vecdot(reference, reference))
    zero = norms == 0
    return xp.where(zero, xp.zeros_like(dots), dots / xp.where(zero, xp.ones_like(norms), norms))
