"""The vision encoder in groups of layers, so that patches can be cut or merged on the way.

``vision_group.<i>`` runs up to between attention and MLP of its last layer and hands over there:
the MLP works on every token by itself, so a cut at that place is also one behind the layer, and
what is dropped skips the MLP too. ``vision_tail`` ends with the hidden state that the projector
reads, and ``vision_cls`` brings its CLS row into the joint space.

Attention is written out here, because the methods score by its weights: they are the ones that
mix the values, computed once. ``vision.onnx``, which cuts nothing, keeps its fused attention.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from export.architecture import VisionConfig
from export.checkpoint import TensorStore
from export.graph import GraphBuilder
from export.layers import (
    FUSED_DIALECTS,
    clip_mlp,
    clip_projections,
    layer_norm,
    linear,
    merge_heads,
    split_heads,
)
from export.vision import embed_patches, layer_number


class _Attended(NamedTuple):
    """A layer after its attention: (1, n, D) states, (heads, n, n) weights, keys and values."""

    states: str
    weights: str
    keys: str
    values: str


def group_bounds(config: VisionConfig, size: int) -> list[tuple[int, int]]:
    """First and end layer of every group; the groups cover the layers the projector reads."""
    count = layer_number(config, config.feature_layer, "vision_feature_layer")
    return [(first, min(first + size, count)) for first in range(0, count, size)]


def emit_group(
    graph: GraphBuilder,
    tensors: TensorStore,
    config: VisionConfig,
    *,
    dialect: str,
    first: int,
    end: int,
) -> None:
    """Emit layers ``first`` to ``end - 1`` without the last one's MLP.

    Inputs: pixel_values (1, 3, size, size) for the first group; else attended (1, n, D), what the
    group before left, and key_bias (n,), added to the attention logits of each key.
    Outputs: next_attended (1, n, D); attention (layers, n, n), head mean of each layer; keys
    (n, head_dim), head mean, and values (n, D) of the last layer.
    """
    bias = ""
    if first == 0:
        x = embed_patches(graph, tensors, config)
    else:
        x = graph.input("attended", TensorProto.FLOAT, [1, "rows", config.hidden])
        bias = graph.input("key_bias", TensorProto.FLOAT, ["rows"])
        x = _mlp(graph, tensors, config, first - 1, x, dialect)
    maps = []
    for index in range(first, end):
        layer = _attend(graph, tensors, config, index, x, bias)
        maps.append(graph.reduce("ReduceMean", layer.weights, 1, keepdims=False))
        x = layer.states
        if index < end - 1:
            x = _mlp(graph, tensors, config, index, x, dialect)
    rows = config.grid**2 + 1 if first == 0 else "rows"
    stacked = graph.node("Concat", *maps, axis=0) if len(maps) > 1 else maps[0]
    keys = graph.node("Reshape", layer.keys, graph.ints(-1, config.heads, _head_dim(config)))
    keys = graph.reduce("ReduceMean", keys, 1, keepdims=False)
    values = graph.node("Squeeze", layer.values, graph.ints(0))
    graph.output("next_attended", x, TensorProto.FLOAT, [1, rows, config.hidden])
    graph.output("attention", stacked, TensorProto.FLOAT, [end - first, rows, rows])
    graph.output("keys", keys, TensorProto.FLOAT, [rows, _head_dim(config)])
    graph.output("values", values, TensorProto.FLOAT, [rows, config.hidden])


def emit_tail(
    graph: GraphBuilder, tensors: TensorStore, config: VisionConfig, *, dialect: str, last: int
) -> None:
    """Emit the MLP of layer ``last``: attended (1, n, D) -> hidden_state (1, n, D), CLS first."""
    x = graph.input("attended", TensorProto.FLOAT, [1, "rows", config.hidden])
    x = _mlp(graph, tensors, config, last, x, dialect)
    graph.output("hidden_state", x, TensorProto.FLOAT, [1, "rows", config.hidden])


def emit_cls(
    graph: GraphBuilder,
    tensors: TensorStore,
    config: VisionConfig,
    *,
    dialect: str,
    first: int,
    visual_projection: NDArray[Any],
) -> None:
    """Emit layers ``first`` to the last, post-layernorm and projection, of the CLS token.

    Input: hidden_state (1, n, D) entering layer ``first``, CLS first. Output: cls_embed (1, P) in
    the joint space.
    """
    x = graph.input("hidden_state", TensorProto.FLOAT, [1, "rows", config.hidden])
    for index in range(first, config.layers):
        # Behind the last attention only the CLS row is read.
        only_cls = index == config.layers - 1
        x = _attend(graph, tensors, config, index, x, "", only_cls=only_cls).states
        x = _mlp(graph, tensors, config, index, x, dialect)
    cls = graph.node("Gather", x, graph.constant(np.array(0, np.int64)), axis=1)
    cls = layer_norm(graph, tensors, "vision.post_layernorm", cls, config.norm_eps)
    weight = graph.weight("visual_projection.weight", np.ascontiguousarray(visual_projection.T))
    embed = graph.node("MatMul", cls, weight, name="visual_projection")
    graph.output("cls_embed", embed, TensorProto.FLOAT, [1, visual_projection.shape[0]])


def _attend(
    graph: GraphBuilder,
    tensors: TensorStore,
    config: VisionConfig,
    index: int,
    x: str,
    bias: str,
    *,
    only_cls: bool = False,
) -> _Attended:
    """The attention half of one layer; ``only_cls``: of the CLS row alone."""
    prefix, dim = f"vision.encoder.layers.{index}", _head_dim(config)
    q, keys, values = clip_projections(graph, tensors, prefix, x, config.norm_eps)
    if only_cls:
        q, x = (graph.node("Slice", y, *(graph.ints(i) for i in (0, 1, 1))) for y in (q, x))
    query = split_heads(graph, q, config.heads, dim)
    query = graph.node("Mul", query, graph.scalar(dim**-0.5))
    key = graph.node("Reshape", keys, graph.ints(0, -1, config.heads, dim))
    key = graph.node("Transpose", key, perm=[0, 2, 3, 1])
    logits = graph.node("MatMul", query, key)
    if bias:
        logits = graph.node("Add", logits, bias)
    weights = graph.node("Softmax", logits, axis=-1)
    mixed = graph.node("MatMul", weights, split_heads(graph, values, config.heads, dim))
    mixed = merge_heads(graph, mixed, config.hidden)
    mixed = linear(graph, tensors, f"{prefix}.self_attn.out_proj", mixed)
    return _Attended(graph.node("Add", x, mixed), weights, keys, values)


def _mlp(
    graph: GraphBuilder,
    tensors: TensorStore,
    config: VisionConfig,
    index: int,
    x: str,
    dialect: str,
) -> str:
    prefix = f"vision.encoder.layers.{index}"
    fused = dialect in FUSED_DIALECTS
    return clip_mlp(graph, tensors, prefix, x, config.norm_eps, config.activation, fused=fused)


def _head_dim(config: VisionConfig) -> int:
    return config.hidden // config.heads
