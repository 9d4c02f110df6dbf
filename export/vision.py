"""``vision.onnx``: pixels to patch features, CLS attention rows, keys and joint-space patches.

Attention stays fused; a CLS row is computed beside it as one extra softmax(q_cls K^T), which
costs one row instead of the whole attention matrix. Runtimes execute a graph whole, whatever is
fetched, so outputs are those whose parts the encoder computes anyway: the keys are a copy. Only
where the last layer does not run are its keys an extra, a twelfth of what running it would take.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from edge_atp.errors import ArtifactError, ConfigError
from export.architecture import VisionConfig
from export.checkpoint import TensorStore
from export.graph import GraphBuilder
from export.layers import FUSED_DIALECTS, clip_layer, layer_norm, linear, split_heads

# "Until the end" for Slice; TensorRT 8 holds indices in 32 bits.
TO_END = np.iinfo(np.int32).max


class _Layers(NamedTuple):
    """Numbers of hidden states (0 = embeddings): projector's, joint space's, last one run."""

    feature: int
    embed: int
    last: int


def emit_vision(
    graph: GraphBuilder,
    tensors: TensorStore,
    config: VisionConfig,
    visual_projection: NDArray[Any] | None,
    *,
    dialect: str,
    embed_layer: int = -1,
    value_path: bool = False,
) -> None:
    """Emit the vision graph.

    Input: pixel_values (1, 3, size, size).
    Outputs: patch_features (1, N, D) of hidden state ``feature_layer``; cls_attention (1, N),
    head mean, of the layer that produced it, and patch_keys (1, N, D), that layer's attention keys
    of the patches, heads concatenated; last_cls_attention and last_patch_keys, the same of the
    encoder's last layer (absent where it is the consumed one, or what enters it is not there);
    patch_embeds (1, N, P), post-layernorm and visual projection of hidden state ``embed_layer`` or
    of the value path (absent without a projection).

    Args:
        visual_projection: (P, D), or None where the checkpoint has no joint space.
        value_path: patch_embeds from the last layer's values, out(v(LN1(x))), without attention
            and residual, instead of ``embed_layer``; MaskCLIP (Zhou et al., 2022), sec. 3.2.
    Raises:
        ArtifactError: a layer index is out of range, or a tensor is missing.
        ConfigError: ``value_path``, and the projector reads the last layer.
    """
    joint = visual_projection is not None
    at = _layers_to_run(config, embed_layer, joint=joint, value_path=value_path)
    states, scored = _run_layers(graph, tensors, config, at, dialect)
    entering_last = ""
    if at.last == config.layers - 1:
        prefix = f"vision.encoder.layers.{at.last}.layer_norm1"
        entering_last = layer_norm(graph, tensors, prefix, states[-1], config.norm_eps)
        scored[config.layers] = _last_layer_keys(graph, tensors, config, entering_last)
    _emit_features(graph, config, states[at.feature], scored, at.feature)
    if visual_projection is not None:
        patches = without_cls(graph, entering_last if value_path else states[at.embed])
        if value_path:
            patches = value_path_states(graph, tensors, config, patches)
        emit_patch_embeds(graph, tensors, config, visual_projection, patches, config.grid**2)


def _layers_to_run(
    config: VisionConfig, embed_layer: int, *, joint: bool, value_path: bool
) -> _Layers:
    """What ``emit_vision`` reads where; ``joint``: there is a joint space.

    Raises:
        ArtifactError: a layer index is out of range.
        ConfigError: the value path needs the last layer not to run, and it runs.
    """
    feature = layer_number(config, config.feature_layer, "vision_feature_layer")
    if value_path and joint and feature == config.layers:
        raise ConfigError(
            "relevance_source value takes the last layer's values without running it, and this"
            " model's projector reads that layer; choose raw or negated"
        )
    # The value path reads what enters the last layer.
    embed = config.layers - 1 if value_path else layer_number(config, embed_layer, "embed_layer")
    return _Layers(feature, embed, max(feature, embed if joint else 0))


def _run_layers(
    graph: GraphBuilder, tensors: TensorStore, config: VisionConfig, at: _Layers, dialect: str
) -> tuple[list[str], dict[int, tuple[str, str]]]:
    """Run the layers up to hidden state ``at.last``.

    Returns:
        The hidden states (1, 1 + N, D) by number, and CLS row (1, N) and keys (1, N, D) of the
        layers behind the consumed state and the encoder's last, by the number of that state.
    """
    head_dim = config.hidden // config.heads
    states = [embed_patches(graph, tensors, config)]
    scored: dict[int, tuple[str, str]] = {}
    for index in range(at.last):
        x, q, k = clip_layer(
            graph,
            tensors,
            f"vision.encoder.layers.{index}",
            states[-1],
            config.heads,
            head_dim,
            config.norm_eps,
            config.activation,
            fused=dialect in FUSED_DIALECTS,
        )
        states.append(x)
        if index + 1 in (at.feature, config.layers):
            row = cls_row(graph, q, k, config.heads, head_dim)
            scored[index + 1] = (row, without_cls(graph, k))
    return states, scored


def _emit_features(
    graph: GraphBuilder,
    config: VisionConfig,
    state: str,
    scored: dict[int, tuple[str, str]],
    consumed: int,
) -> None:
    """Put out the patches of the consumed ``state``, and what ``_run_layers`` scored."""
    count = config.grid**2
    features = without_cls(graph, state)
    graph.output("patch_features", features, TensorProto.FLOAT, [1, count, config.hidden])
    for number, (row, keys) in scored.items():
        prefix = "" if number == consumed else "last_"
        graph.output(f"{prefix}cls_attention", row, TensorProto.FLOAT, [1, count])
        graph.output(f"{prefix}patch_keys", keys, TensorProto.FLOAT, [1, count, config.hidden])


def emit_patch_embeds(
    graph: GraphBuilder,
    tensors: TensorStore,
    config: VisionConfig,
    visual_projection: NDArray[Any],
    patches: str,
    count: int,
) -> None:
    """Output ``patch_embeds`` (1, count, P): the ``patches`` (1, count, D) in the joint space."""
    normed = layer_norm(graph, tensors, "vision.post_layernorm", patches, config.norm_eps)
    weight = graph.weight("visual_projection.weight", np.ascontiguousarray(visual_projection.T))
    embeds = graph.node("MatMul", normed, weight, name="visual_projection")
    graph.output("patch_embeds", embeds, TensorProto.FLOAT, [1, count, visual_projection.shape[0]])


def _last_layer_keys(
    graph: GraphBuilder, tensors: TensorStore, config: VisionConfig, normed: str
) -> tuple[str, str]:
    """CLS row and keys of a last layer that does not run itself.

    Args:
        normed: (1, 1 + N, D) what enters that layer, behind its first norm.
    """
    prefix = f"vision.encoder.layers.{config.layers - 1}.self_attn"
    k = linear(graph, tensors, f"{prefix}.k_proj", normed)
    cls = graph.node("Slice", normed, graph.ints(0), graph.ints(1), graph.ints(1))
    q = linear(graph, tensors, f"{prefix}.q_proj", cls)
    row = cls_row(graph, q, k, config.heads, config.hidden // config.heads)
    return row, without_cls(graph, k)


def value_path_states(
    graph: GraphBuilder, tensors: TensorStore, config: VisionConfig, normed: str
) -> str:
    """What a token would add to its state in the last layer if it attended to itself alone.

    Args:
        normed: (1, N, D) patches that enter that layer, behind its first norm.
    """
    prefix = f"vision.encoder.layers.{config.layers - 1}.self_attn"
    values = linear(graph, tensors, f"{prefix}.v_proj", normed)
    return linear(graph, tensors, f"{prefix}.out_proj", values)


def layer_number(config: VisionConfig, index: int, name: str) -> int:
    """Hidden-state index (0 = embeddings) of a possibly negative layer index."""
    number = index if index >= 0 else config.layers + 1 + index
    if not 1 <= number <= config.layers:
        raise ArtifactError(
            f"{name} is {index}; the vision encoder has {config.layers} layers, so it must be in"
            f" [1, {config.layers}] or [-{config.layers}, -1]"
        )
    return number


def embed_patches(graph: GraphBuilder, tensors: TensorStore, config: VisionConfig) -> str:
    """Declare pixel_values; returns the states (1, 1 + N, D) that enter the first layer."""
    size, patch, width = config.image_size, config.patch_size, config.hidden
    pixels = graph.input("pixel_values", TensorProto.FLOAT, [1, 3, size, size])
    prefix = "vision.embeddings"
    kernel = graph.weight(
        f"{prefix}.patch_embedding.weight", tensors.get(f"{prefix}.patch_embedding.weight")
    )
    x = graph.node(
        "Conv",
        pixels,
        kernel,
        name=f"{prefix}.patch_embedding",
        kernel_shape=[patch, patch],
        strides=[patch, patch],
    )
    x = graph.node("Reshape", x, graph.ints(1, width, -1))
    x = graph.node("Transpose", x, perm=[0, 2, 1])
    cls = tensors.get(f"{prefix}.class_embedding").reshape(1, 1, width)
    x = graph.node("Concat", graph.weight(f"{prefix}.class_embedding", cls), x, axis=1)
    positions = tensors.get(f"{prefix}.position_embedding.weight")
    if positions.shape[0] != config.grid**2 + 1:
        raise ArtifactError(
            f"{prefix}.position_embedding has {positions.shape[0]} rows; image_size {size} and"
            f" patch_size {patch} need {config.grid**2 + 1}"
        )
    x = graph.node("Add", x, graph.weight(f"{prefix}.position_embedding.weight", positions))
    return layer_norm(graph, tensors, "vision.pre_layrnorm", x, config.norm_eps)


def cls_row(
    graph: GraphBuilder, q: str, k: str, heads: int, head_dim: int, bias: str | None = None
) -> str:
    """Head-mean attention of the CLS query to each other token, (1, S - 1).

    Args:
        q, k: (1, S, heads * head_dim) projections, CLS first.
        bias: (S,) or what broadcasts with it, added to the logits.
    """
    first = graph.node("Slice", q, graph.ints(0), graph.ints(1), graph.ints(1))
    query = split_heads(graph, first, heads, head_dim)
    query = graph.node("Mul", query, graph.scalar(head_dim**-0.5))
    keys = graph.node("Reshape", k, graph.ints(0, -1, heads, head_dim))
    keys = graph.node("Transpose", keys, perm=[0, 2, 3, 1])
    logits = graph.node("MatMul", query, keys)
    if bias:
        logits = graph.node("Add", logits, bias)
    row = graph.node("Softmax", logits, axis=-1)
    mean = graph.reduce("ReduceMean", row, 1, 2, keepdims=False)
    return graph.node("Slice", mean, graph.ints(1), graph.ints(TO_END), graph.ints(1))


def without_cls(graph: GraphBuilder, x: str) -> str:
    """(1, 1 + N, D) -> (1, N, D)."""
    end = graph.ints(TO_END)
    return graph.node("Slice", x, graph.ints(1), end, graph.ints(1))
