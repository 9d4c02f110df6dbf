"""``vision_cut.onnx``: the vision encoder that drops patches on the way, in one graph.

Between attention and MLP of a scheduled layer the patches that CLS attends to most stay (EViT's
rule), and all others become one token: their mean, weighted by how many patches each stands for,
whose key counts as often as it has patches (ToMe's rule). Without that token the layers behind
would attend as if the picture had nothing but what stayed, and counting suffers. It is no patch:
nothing selects or projects it.

The counts are fixed when the graph is written, so every shape is static and nothing returns to the
host between the layers. The graph ends with the layer that the projector reads; joint-space patches
are of that layer too, whatever ``embed_layer`` says of ``vision.onnx``.
Sources: Liang et al., "Not All Patches are What You Need" (EViT), sec. 3; Bolya et al., "Token
Merging", sec. 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from edge_atp.errors import ConfigError
from edge_atp.pruning.schedule import Schedule, Stage
from export.architecture import VisionConfig
from export.checkpoint import TensorStore
from export.graph import GraphBuilder
from export.layers import (
    FUSED_DIALECTS,
    attention,
    clip_mlp,
    clip_projections,
    layer_norm,
    linear,
)
from export.selection import sort_ascending
from export.vision import (
    TO_END,
    cls_row,
    embed_patches,
    emit_patch_embeds,
    layer_number,
    value_path_states,
    without_cls,
)


def read_schedule(text: str, config: VisionConfig) -> Schedule:
    """The cuts that ``vision_cut`` asks for: "LAYER:KEPT", several with commas.

    Args:
        text: such as "2:144"; layers count from 0, KEPT is the number of patches left.
    Raises:
        ConfigError: not of that form, or the encoder has no such layer or number of patches.
    """
    stages = []
    for part in text.split(","):
        layer, separator, kept = part.strip().partition(":")
        if not (separator and layer.isdecimal() and kept.isdecimal()):
            raise ConfigError(
                f"vision_cut is {text!r}; write LAYER:KEPT, several with commas, such as 2:144"
            )
        stages.append(Stage(int(layer), int(kept)))
    schedule = Schedule(tuple(stages))
    consumed = layer_number(config, config.feature_layer, "vision_feature_layer")
    if schedule.layers[-1] > consumed - 2:
        raise ConfigError(
            f"vision_cut is {text!r}; the projector reads layer {consumed - 1}, and a cut must be"
            f" before it: layers 0 to {consumed - 2}"
        )
    counts = (config.grid**2, *schedule.counts)
    if counts[-1] < 1 or any(after >= before for before, after in pairwise(counts)):
        raise ConfigError(
            f"vision_cut is {text!r}; each cut must leave fewer of the {counts[0]} patches than"
            " the one before it, and at least 1"
        )
    return schedule


@dataclass(frozen=True)
class _Tokens:
    """The states on their way: CLS, ``count`` patches and, once something left, the merged rest.

    states: (1, S, D).
    place: (count,) int64 ascending, the patch each stands at; "" while all are there.
    merged: patches in the last token; 0 while there is none.
    """

    states: str
    count: int
    place: str = ""
    merged: int = 0


def emit_vision_cut(
    graph: GraphBuilder,
    tensors: TensorStore,
    config: VisionConfig,
    visual_projection: NDArray[Any] | None,
    *,
    dialect: str,
    schedule: Schedule,
    value_path: bool = False,
) -> None:
    """Emit the encoder with the cuts of ``schedule``.

    Input: pixel_values (1, 3, size, size).
    Outputs, K patches behind the last cut: patch_features (1, K, D), cls_attention (1, K), head
    mean, and patch_keys (1, K, D) of the layer that the projector reads; patch_embeds (1, K, P),
    absent without a projection; place (K,) int64 ascending, the patch each row stands at.

    Args:
        visual_projection: (P, D), or None where the checkpoint has no joint space.
        value_path: see ``export.vision.emit_vision``; the consumed layer must then be the last but
            one.
    Raises:
        ConfigError: ``value_path``, and the consumed layer is another.
    """
    consumed = layer_number(config, config.feature_layer, "vision_feature_layer")
    if value_path and consumed != config.layers - 1:
        raise ConfigError(
            "relevance_source value takes the last layer's values, and vision_cut ends with layer"
            f" {consumed - 1}; choose raw or negated, or leave vision_cut out"
        )
    tokens, scored = _encode(graph, tensors, config, schedule, consumed, dialect)
    _emit_outputs(graph, tensors, config, visual_projection, tokens, scored, value_path)


def _encode(
    graph: GraphBuilder,
    tensors: TensorStore,
    config: VisionConfig,
    schedule: Schedule,
    consumed: int,
    dialect: str,
) -> tuple[_Tokens, tuple[str, str]]:
    """Run the first ``consumed`` layers with their cuts.

    Returns:
        What is left, and CLS row (1, K) and keys (1, K, D) of the last of these layers.
    """
    fused, head_dim = dialect in FUSED_DIALECTS, config.hidden // config.heads
    tokens = _Tokens(embed_patches(graph, tensors, config), config.grid**2)
    row = keys = ""
    for index in range(consumed):
        prefix = f"vision.encoder.layers.{index}"
        q, k, v = clip_projections(graph, tensors, prefix, tokens.states, config.norm_eps)
        bias = _key_bias(graph, tokens)
        rows_bias = _for_rows(graph, bias, tokens)
        mixed = attention(graph, q, k, v, config.heads, head_dim, fused=fused, bias=rows_bias)
        mixed = linear(graph, tensors, f"{prefix}.self_attn.out_proj", mixed)
        x = graph.node("Add", tokens.states, mixed)
        stage = schedule.at(index)
        if stage or index == consumed - 1:
            row = _patches(graph, cls_row(graph, q, k, config.heads, head_dim, bias), tokens)
        if index == consumed - 1:
            keys = _patches(graph, without_cls(graph, k), tokens)
        cut = _cut(graph, x, row, tokens, stage.num_kept) if stage else replace(tokens, states=x)
        act, eps = config.activation, config.norm_eps
        x = clip_mlp(graph, tensors, prefix, cut.states, eps, act, fused=fused)
        tokens = replace(cut, states=x)
    return tokens, (row, keys)


def _emit_outputs(
    graph: GraphBuilder,
    tensors: TensorStore,
    config: VisionConfig,
    visual_projection: NDArray[Any] | None,
    tokens: _Tokens,
    scored: tuple[str, str],
    value_path: bool,
) -> None:
    count, width = tokens.count, config.hidden
    features = _patches(graph, without_cls(graph, tokens.states), tokens)
    graph.output("patch_features", features, TensorProto.FLOAT, [1, count, width])
    graph.output("cls_attention", scored[0], TensorProto.FLOAT, [1, count])
    graph.output("patch_keys", scored[1], TensorProto.FLOAT, [1, count, width])
    graph.output("place", tokens.place, TensorProto.INT64, [count])
    if visual_projection is None:
        return
    patches = features
    if value_path:
        prefix = f"vision.encoder.layers.{config.layers - 1}.layer_norm1"
        patches = layer_norm(graph, tensors, prefix, patches, config.norm_eps)
        patches = value_path_states(graph, tensors, config, patches)
    emit_patch_embeds(graph, tensors, config, visual_projection, patches, count)


def _cut(graph: GraphBuilder, x: str, row: str, tokens: _Tokens, num_kept: int) -> _Tokens:
    """Keep the ``num_kept`` patches of the largest ``row`` (1, count), and merge the rest of x."""
    scores = graph.node("Squeeze", row, graph.ints(0))
    kept_count = graph.ints(num_kept)
    # Ties go to the lowest index, as everywhere (see export.selection).
    _, order = graph.nodes("TopK", [scores, kept_count], 2, axis=0, largest=1, sorted=1)
    kept = sort_ascending(graph, order, kept_count)
    behind_cls = without_cls(graph, x)
    patches = _patches(graph, behind_cls, tokens)
    rows = graph.node("Gather", patches, kept, axis=1)
    everything = graph.reduce("ReduceSum", patches, 1, keepdims=True)
    rest = graph.node("Sub", everything, graph.reduce("ReduceSum", rows, 1, keepdims=True))
    if tokens.merged:
        last = graph.node("Slice", behind_cls, graph.ints(-1), graph.ints(TO_END), graph.ints(1))
        rest = graph.node("Add", rest, graph.node("Mul", last, graph.scalar(float(tokens.merged))))
    size = tokens.count - num_kept + tokens.merged
    merged = graph.node("Mul", rest, graph.scalar(1.0 / size))
    cls = graph.node("Slice", x, graph.ints(0), graph.ints(1), graph.ints(1))
    place = graph.node("Gather", tokens.place, kept, axis=0) if tokens.place else kept
    states = graph.node("Concat", cls, rows, merged, axis=1)
    return _Tokens(states, num_kept, place, size)


def _patches(graph: GraphBuilder, behind_cls: str, tokens: _Tokens) -> str:
    """The patches of (1, count, ...) or, with the merged token behind them, (1, count + 1, ...)."""
    if not tokens.merged:
        return behind_cls
    return graph.node("Slice", behind_cls, graph.ints(0), graph.ints(tokens.count), graph.ints(1))


def _key_bias(graph: GraphBuilder, tokens: _Tokens) -> str | None:
    """(1, 1, 1, S) added to the logits: log(size) for the merged token's key; None without one."""
    if not tokens.merged:
        return None
    row = np.zeros((1, 1, 1, tokens.count + 2), np.float32)
    row[..., -1] = math.log(tokens.merged)
    return graph.constant(row)


def _for_rows(graph: GraphBuilder, bias: str | None, tokens: _Tokens) -> str | None:
    """The bias as the fused operator wants it, (1, 1, S, S); constant, so expanded once."""
    rows = tokens.count + 2
    return graph.node("Expand", bias, graph.ints(1, 1, rows, rows)) if bias else None
