"""Blocks that the vision, text and projector graphs share, emitted with plain ONNX operators
and ONNX Runtime's fused attention where the dialect has it.
"""

from __future__ import annotations

import math

import numpy as np

from edge_atp.errors import ArtifactError
from export.checkpoint import TensorStore
from export.graph import CONTRIB, GraphBuilder

# Dialects with com.microsoft operators; all others use the standard operator set alone.
FUSED_DIALECTS = frozenset({"ort-gqa"})


def linear(graph: GraphBuilder, tensors: TensorStore, prefix: str, x: str) -> str:
    """x W^T + b for the layer stored as ``prefix.weight`` (out, in) and optional ``.bias``."""
    weight = np.ascontiguousarray(tensors.get(f"{prefix}.weight").T)
    name = f"{prefix}.bias"
    return graph.linear(x, prefix, weight, tensors.get(name) if name in tensors else None)


def packed_linear(
    graph: GraphBuilder, tensors: TensorStore, prefixes: tuple[str, ...], name: str, x: str
) -> list[str]:
    """Several layers on the same input as one matrix product, split into their outputs."""
    weights = [tensors.get(f"{p}.weight") for p in prefixes]
    packed = np.ascontiguousarray(np.concatenate(weights, axis=0).T)
    bias = None
    if f"{prefixes[0]}.bias" in tensors:
        bias = np.concatenate([tensors.get(f"{p}.bias") for p in prefixes])
    y = graph.linear(x, name, packed, bias)
    sizes = graph.ints(*(w.shape[0] for w in weights))
    return graph.nodes("Split", [y, sizes], len(prefixes), name=f"{name}/split", axis=-1)


def layer_norm(graph: GraphBuilder, tensors: TensorStore, prefix: str, x: str, eps: float) -> str:
    """LayerNorm over the last axis."""
    scale = graph.weight(f"{prefix}.weight", tensors.get(f"{prefix}.weight"))
    bias = graph.weight(f"{prefix}.bias", tensors.get(f"{prefix}.bias"))
    return graph.node("LayerNormalization", x, scale, bias, name=prefix, axis=-1, epsilon=eps)


def activation(graph: GraphBuilder, kind: str, x: str, *, fused: bool) -> str:
    """The activation function ``kind`` by its Hugging Face name.

    Raises:
        ArtifactError: not supported.
    """
    if kind == "quick_gelu":
        if fused:
            return graph.node("QuickGelu", x, domain=CONTRIB, alpha=1.702)
        gate = graph.node("Sigmoid", graph.node("Mul", x, graph.scalar(1.702)))
        return graph.node("Mul", x, gate)
    if kind == "silu":
        if fused:
            return graph.node("QuickGelu", x, domain=CONTRIB, alpha=1.0)
        return graph.node("Mul", x, graph.node("Sigmoid", x))
    if kind == "gelu":
        if fused:
            return graph.node("Gelu", x, domain=CONTRIB)
        erf = graph.node("Erf", graph.node("Div", x, graph.scalar(math.sqrt(2.0))))
        half = graph.node("Mul", x, graph.scalar(0.5))
        return graph.node("Mul", half, graph.node("Add", erf, graph.scalar(1.0)))
    raise ArtifactError(f"activation {kind!r} is not supported; quick_gelu, gelu and silu are")


def split_heads(graph: GraphBuilder, x: str, heads: int, head_dim: int) -> str:
    """(1, S, heads * head_dim) -> (1, heads, S, head_dim)."""
    x = graph.node("Reshape", x, graph.ints(0, -1, heads, head_dim))
    return graph.node("Transpose", x, perm=[0, 2, 1, 3])


def merge_heads(graph: GraphBuilder, x: str, width: int) -> str:
    """(1, heads, S, head_dim) -> (1, S, width)."""
    x = graph.node("Transpose", x, perm=[0, 2, 1, 3])
    return graph.node("Reshape", x, graph.ints(0, -1, width))


def attention(
    graph: GraphBuilder,
    q: str,
    k: str,
    v: str,
    heads: int,
    head_dim: int,
    *,
    fused: bool,
    causal_bias: str | None = None,
    bias: str | None = None,
) -> str:
    """Multi-head attention of (1, S, heads * head_dim) projections, scaled by head_dim ** -0.5.

    Args:
        fused: use com.microsoft.MultiHeadAttention.
        causal_bias: (1, 1, S, S) additive mask for causal attention; the fused operator masks
            by itself and any non-empty name asks it to.
        bias: (1, 1, S, S) added to the logits of attention that is not causal.
    """
    if fused:
        return graph.node(
            "MultiHeadAttention",
            q,
            k,
            v,
            *(("", "", bias) if bias else ()),
            domain=CONTRIB,
            num_heads=heads,
            unidirectional=int(causal_bias is not None),
        )
    query = split_heads(graph, q, heads, head_dim)
    query = graph.node("Mul", query, graph.scalar(head_dim**-0.5))
    key = graph.node("Reshape", k, graph.ints(0, -1, heads, head_dim))
    key = graph.node("Transpose", key, perm=[0, 2, 3, 1])
    scores = graph.node("MatMul", query, key)
    if added := causal_bias or bias:
        scores = graph.node("Add", scores, added)
    weights = graph.node("Softmax", scores, axis=-1)
    mixed = graph.node("MatMul", weights, split_heads(graph, v, heads, head_dim))
    return merge_heads(graph, mixed, heads * head_dim)


def clip_layer(
    graph: GraphBuilder,
    tensors: TensorStore,
    prefix: str,
    x: str,
    heads: int,
    head_dim: int,
    norm_eps: float,
    act: str,
    *,
    fused: bool,
    causal_bias: str | None = None,
) -> tuple[str, str, str]:
    """One pre-norm transformer layer of CLIP (vision or text).

    Returns:
        The layer's output (1, S, D), and its query and key projections (1, S, D).
    """
    q, k, v = clip_projections(graph, tensors, prefix, x, norm_eps)
    mixed = attention(graph, q, k, v, heads, head_dim, fused=fused, causal_bias=causal_bias)
    mixed = linear(graph, tensors, f"{prefix}.self_attn.out_proj", mixed)
    x = graph.node("Add", x, mixed)
    return clip_mlp(graph, tensors, prefix, x, norm_eps, act, fused=fused), q, k


def clip_projections(
    graph: GraphBuilder, tensors: TensorStore, prefix: str, x: str, norm_eps: float
) -> list[str]:
    """Query, key and value projections, (1, S, D) each, of a layer's normalised input."""
    normed = layer_norm(graph, tensors, f"{prefix}.layer_norm1", x, norm_eps)
    names = tuple(f"{prefix}.self_attn.{part}_proj" for part in "qkv")
    return packed_linear(graph, tensors, names, f"{prefix}.self_attn.qkv", normed)


def clip_mlp(
    graph: GraphBuilder,
    tensors: TensorStore,
    prefix: str,
    x: str,
    norm_eps: float,
    act: str,
    *,
    fused: bool,
) -> str:
    """The second half of a layer, x + mlp(norm(x)): every token by itself."""
    hidden = layer_norm(graph, tensors, f"{prefix}.layer_norm2", x, norm_eps)
    hidden = linear(graph, tensors, f"{prefix}.mlp.fc1", hidden)
    hidden = activation(graph, act, hidden, fused=fused)
    return graph.node("Add", x, linear(graph, tensors, f"{prefix}.mlp.fc2", hidden))
