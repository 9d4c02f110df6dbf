"""Attention rows from one layer's queries and keys, for methods that look inside a model.

A scoring rule needs one row or a few; fused attention kernels return none. These functions
compute exactly the rows asked for, so every layer keeps its fast kernel.
"""

from __future__ import annotations

from array_api_compat import array_namespace

from edge_atp.errors import ShapeError
from edge_atp.pruning.ops import as_float32, mean_over, softmax
from edge_atp.types import Array


def attention_rows(
    queries: Array, keys: Array, scale: float | None = None, visible: Array | None = None
) -> Array:
    """Softmax attention of some query rows over all keys.

    Args:
        queries: (heads, m, d) of the rows wanted, after rotary embedding.
        keys: (kv_heads, n, d), after rotary embedding; kv_heads divides heads (grouped queries).
        scale: factor of the logits; None for d ** -0.5.
        visible: (m, n) or (n,) bool, True where a row may look; None for everywhere.
    Returns:
        (heads, m, n) float32; each row sums to 1.
    Raises:
        ShapeError: heads is not a multiple of kv_heads, or the head widths differ.
    """
    heads, rows, width = queries.shape
    kv_heads, num_keys, key_width = keys.shape
    if heads % kv_heads or width != key_width:
        raise ShapeError(
            f"queries {tuple(queries.shape)} and keys {tuple(keys.shape)}: heads must be a"
            " multiple of kv_heads and the last axes equal"
        )
    xp = array_namespace(queries, keys)
    grouped = xp.reshape(as_float32(queries), (kv_heads, heads // kv_heads * rows, width))
    logits = xp.matmul(grouped, xp.permute_dims(as_float32(keys), (0, 2, 1)))
    logits = xp.reshape(logits, (heads, rows, num_keys))
    logits = logits * (width**-0.5 if scale is None else scale)
    if visible is not None:
        # A finite floor: a row that sees nothing gives a uniform row instead of NaN.
        logits = xp.where(visible, logits, xp.full_like(logits, float(xp.finfo(xp.float32).min)))
    return softmax(logits)


def received(attention: Array) -> Array:
    """Mean attention each token receives: (heads, n, n) -> (n,) float32, saliency without CLS."""
    return as_float32(mean_over(attention, (0, 1)))
