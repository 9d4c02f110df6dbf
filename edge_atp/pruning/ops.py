"""Array building blocks shared by pruning methods (NumPy and torch through the array API).

Scores are float32, and every ranking is a stable descending sort, so ties go to the lowest index
on every backend. Per-row reductions (one dot product a row) give identical rows identical bits,
which a blocked matrix product does not promise; see ``similarity`` for whole matrices.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import array_namespace, to_device
from array_api_compat import numpy as numpy_namespace
from numpy.typing import NDArray

from edge_atp.errors import ShapeError
from edge_atp.types import Array

# Values up to which a cosine with one vector is computed in float64 (30 us).
FEW_VALUES = 1 << 16

# Spread of float32 cosines (in error by 1e-7) below which a min-max is wrong by more than 3e-6.
NARROW_SPAN = 0.03

# Cosines that float32 (each in error by up to 1e-7) cannot put in order for certain.
CLOSE_COSINES = 4e-7

# Products of squared lengths below which float32 loses digits (its normal numbers end at 1e-38).
LEAST_SQUARE = 1e-30

# Whether a dtype of another library is half precision: asking it costs more than a small sum.
_HALF: dict[Any, bool] = {}


def namespace(*arrays: Array) -> Any:
    """``array_namespace``; NumPy is told from its type, which the search takes 1.5 us for.

    ATP asks 14 times and has 200 us.
    """
    for array in arrays:
        if type(array) is not np.ndarray:
            return array_namespace(*arrays)
    return numpy_namespace


def lies_on_host(array: Array) -> bool:
    """Whether the array's memory is the CPU's, so that NumPy can use it without a copy."""
    return isinstance(array, np.ndarray) or str(array.device) == "cpu"


def on_host(array: Array) -> NDArray[Any]:
    """The array as NumPy: the same memory where it lies on the CPU, a copy otherwise.

    Half precision, which NumPy computes slowly or (bfloat16) not at all, becomes float32.
    """
    if isinstance(array, np.ndarray):
        return array
    return _shared(array if lies_on_host(array) else to_device(array, "cpu"))


def share(array: Array) -> NDArray[Any] | None:
    """``on_host`` of an array that lies there, without a copy but for half precision; else None."""
    if isinstance(array, np.ndarray):
        return array
    return _shared(array) if lies_on_host(array) else None


def _shared(array: Array) -> NDArray[Any]:
    # torch refuses to share a tensor that records gradients.
    array = array.detach() if hasattr(array, "detach") else array
    half = _HALF.get(array.dtype)
    if half is None:
        xp = namespace(array)
        floating = xp.isdtype(array.dtype, "real floating")
        half = floating and array.dtype not in (xp.float32, xp.float64)
        _HALF[array.dtype] = half
    return np.asarray(as_float32(array) if half else array)


def top_k(scores: Array, k: int) -> Array:
    """Indices of the k largest scores, best first, ties to the lowest index.

    Args:
        scores: (N,) finite.
        k: in [0, N].
    Returns:
        (k,) int64.
    """
    xp = namespace(scores)
    # Sorting the negated scores ascending keeps stability; descending sorts of some backends
    # reverse equal elements.
    if isinstance(scores, np.ndarray):
        return np.argsort(-scores, kind="stable")[:k]
    order = xp.argsort(-scores, stable=True)
    return xp.astype(order[:k], xp.int64, copy=False)


def best(name: str, scores: Array, num_kept: int) -> Array:
    """``top_k`` where nothing has checked the input yet.

    Raises:
        ShapeError: K is out of [1, N], or a score is not finite; ``name`` is what it comes from.
    """
    require_in_range(num_kept, scores.shape[0])
    require_finite(name, scores)
    return top_k(scores, num_kept)


def require_in_range(num_kept: int, num: int) -> None:
    """Refuse a K out of [1, N]."""
    if not 1 <= num_kept <= num:
        raise ShapeError(f"num_kept is {num_kept}; it must be in [1, {num}]")


def min_max(scores: Array) -> Array:
    """Scale (N,) linearly to [0, 1]; a constant input becomes zeros."""
    xp = namespace(scores)
    low = xp.min(scores)
    span = xp.max(scores) - low
    if float(span) == 0.0:
        return xp.zeros_like(scores)
    return (scores - low) / span


def require_finite(name: str, values: Array) -> float:
    """Refuse NaN and infinity.

    Returns:
        The lowest value.
    Raises:
        ShapeError: names the signal.
    """
    xp = namespace(values)
    lowest = float(xp.min(values))
    # NaN propagates through min and max and fails the comparison.
    if not float("-inf") < lowest <= float(xp.max(values)) < float("inf"):
        raise ShapeError(f"{name} contains NaN or infinity; check the model's precision")
    return lowest


def as_float32(values: Array) -> Array:
    """The values in float32, not copied where they already are."""
    xp = namespace(values)
    return xp.astype(values, xp.float32, copy=False)


def head_mean(attention: Array) -> Array:
    """Mean over heads: (heads, N) or (N,) -> (N,) float32."""
    return as_float32(attention if attention.ndim == 1 else mean_over(attention, 0))


def mean_over(values: Array, axis: int | tuple[int, ...]) -> Array:
    """Mean over some axes, in float64.

    float64 has 29 bits to spare for sums of float32 values, so tokens with the same values have the
    same mean in whatever order a backend (or the tail of its vector loop) adds them.
    """
    hosted = share(values)
    if hosted is None:
        xp = namespace(values)
        axes = (axis,) if isinstance(axis, int) else axis
        total = xp.sum(values, axis=axis, dtype=xp.float64)
        return total / math.prod(values.shape[i] for i in axes)
    # torch's sum into another dtype takes ten times as long on a CPU.
    total = np.add.reduce(hosted, axis=axis, dtype=np.float64)
    total /= hosted.size // total.size
    return total if hosted is values else namespace(values).asarray(total)


def softmax(logits: Array, overwrite: bool = False) -> Array:
    """Softmax over the last axis, shifted by the maximum so that it cannot overflow.

    Args:
        overwrite: the logits are not needed any more, and their memory may hold the result.
    """
    xp = namespace(logits)
    shift = xp.max(logits, axis=-1, keepdims=True)
    if overwrite:
        logits -= shift
    else:
        logits = logits - shift
    powers = np.exp(logits, out=logits) if isinstance(logits, np.ndarray) else xp.exp(logits)
    powers /= xp.sum(powers, axis=-1, keepdims=True)
    return powers


def snap(values: Array) -> Array:
    """Round float64 values so that rounding errors cannot part equal ones; float32 stays as it is.

    The grid is 2^-40 of the largest value (1e-12), a thousand times the errors of the sums here,
    and wide enough that sums of 4096 values on it are exact.
    """
    xp = namespace(values)
    if values.dtype != xp.float64:
        return values
    largest = float(xp.max(xp.abs(values)))
    # Adding 1.5 * 2^12 of the power of two above the largest drops all bits below the grid.
    magic = math.ldexp(1.5, 12 + math.frexp(largest)[1])
    return values if math.isinf(largest) else (values + magic) - magic


def cosine(vectors: Array, reference: Array) -> Array:
    """Cosine of each row with one vector; a zero vector has cosine 0 with everything.

    Args:
        vectors: (N, P).
        reference: (P,).
    Returns:
        (N,) float32; float64 where one of the two is, where it is cheap, and where a min-max
        would magnify float32's errors.
    Raises:
        ShapeError: the widths differ, or a value is NaN or infinite.
    """
    if vectors.shape[1] != reference.shape[0]:
        raise ShapeError(
            f"the patches are {vectors.shape[1]} wide and the text embedding"
            f" {reference.shape[0]}; both must come from the same joint space"
        )
    xp = namespace(vectors, reference)
    double = vectors.dtype == xp.float64 or reference.dtype == xp.float64
    if not double and vectors.shape[0] * vectors.shape[1] > FEW_VALUES:
        with np.errstate(over="ignore", invalid="ignore"):
            dots, squares = _dots(as_float32(vectors), as_float32(reference))
        # Neither a zero vector passes, nor what float32 cannot square, nor what is not finite.
        if LEAST_SQUARE < float(xp.min(squares)) <= float(xp.max(squares)) < math.inf:
            cosines = dots / xp.sqrt(squares)
            if float(xp.max(cosines)) - float(xp.min(cosines)) > NARROW_SPAN:
                return cosines
    dots, squares = _dots(xp.astype(vectors, xp.float64), xp.astype(reference, xp.float64))
    # Squares are finite only if all their terms are, which saves a pass over the vectors.
    if require_finite("patch_embeds or text_embed", squares) == 0.0:
        squares = xp.where(squares == 0, xp.ones_like(squares), squares)  # 0 / 1
    return snap(dots / xp.sqrt(squares))


def _dots(vectors: Array, reference: Array) -> tuple[Array, Array]:
    """(N,) products of the rows with the reference, and of their squared lengths."""
    xp = namespace(vectors)
    squares = xp.vecdot(vectors, vectors) * xp.vecdot(reference, reference)
    return xp.vecdot(vectors, reference[None, :]), squares
