"""``decoder.onnx``: the language model, emitted from the checkpoint's tensors.

One graph serves prefill and decode: it takes S new embeddings and the KV cache, and returns the
logits of the last position and the extended cache. Attention comes from the dialect.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from export.architecture import LlmConfig
from export.checkpoint import TensorStore
from export.dialects import load_dialect
from export.dialects.base import Dialect
from export.dialects.prim18 import Form as PrimitiveForm
from export.graph import GraphBuilder
from export.layers import activation, linear, packed_linear

# "Until the end" for Slice; TensorRT 8 holds indices in 32 bits.
_TO_END = np.iinfo(np.int32).max


def emit_decoder(
    graph: GraphBuilder, tensors: TensorStore, config: LlmConfig, *, dialect: str, max_kv: int
) -> None:
    """Emit the decoder graph.

    Inputs: inputs_embeds (1, S, H), the cache ``past.<layer>.key|value``, and what the dialect
    adds. Outputs: logits (1, vocab) of the last position, ``present.<layer>.key|value``.

    Raises:
        ArtifactError: a tensor is missing, an activation or dialect is not supported.
    """
    form = load_dialect(dialect)(graph, config, max_kv)
    x = graph.input("inputs_embeds", TensorProto.FLOAT, [1, "tokens", config.hidden])
    form.declare_inputs()
    pending = ""
    for index in range(config.layers):
        x, pending = _layer(graph, tensors, config, form, index, x, pending)
    _emit_head(graph, tensors, config, form, x, pending)


def emit_block(
    graph: GraphBuilder,
    tensors: TensorStore,
    config: LlmConfig,
    *,
    dialect: str,
    max_kv: int,
    first: int,
    end: int,
) -> None:
    """Emit layers ``first`` to ``end - 1`` as a graph of their own, so that tokens can be cut.

    Inputs: hidden (1, S, H), position_ids (1, S), the cache of these layers, and what the dialect
    adds. Outputs: next_hidden (1, S, H), or logits (1, vocab) for the last block, the cache, and
    each layer's rotated queries as ``queries.<layer>``, (1, S, heads * head_dim) in dialect
    ort-gqa and (1, heads, S, head_dim) in all others.
    """
    form = load_dialect(dialect)(
        graph, config, max_kv, explicit_positions=True, expose_queries=True
    )
    x = graph.input("hidden", TensorProto.FLOAT, [1, "tokens", config.hidden])
    form.declare_inputs()
    pending = ""
    for index in range(first, end):
        x, pending = _layer(graph, tensors, config, form, index, x, pending)
    if end == config.layers:
        _emit_head(graph, tensors, config, form, x, pending)
    else:
        total = graph.node("Add", x, pending)
        graph.output("next_hidden", total, TensorProto.FLOAT, [1, "tokens", config.hidden])


def emit_probe(
    graph: GraphBuilder, tensors: TensorStore, config: LlmConfig, *, layer: int, max_kv: int
) -> None:
    """Emit one layer's rotated queries and keys, from which the host scores tokens.

    Inputs: hidden (1, S, H) entering the layer, position_ids (1, S), rows (R,) whose queries are
    wanted. Outputs: queries (heads, R, head_dim), keys (kv_heads, S, head_dim).
    """
    form = load_dialect("prim18")(graph, config, max_kv)
    assert isinstance(form, PrimitiveForm)
    x = graph.input("hidden", TensorProto.FLOAT, [1, "tokens", config.hidden])
    positions = graph.input("position_ids", TensorProto.INT64, [1, "tokens"])
    rows = graph.input("rows", TensorProto.INT64, ["rows"])
    prefix = f"llm.layers.{layer}"
    normed = form.rms_norm(x, _norm_weight(graph, tensors, f"{prefix}.input_layernorm"))
    picked = graph.node("Gather", normed, rows, axis=1)
    q = linear(graph, tensors, f"{prefix}.self_attn.q_proj", picked)
    k = linear(graph, tensors, f"{prefix}.self_attn.k_proj", normed)
    at_rows = graph.node("Gather", positions, rows, axis=1)
    for name, value, heads, count, where in (
        ("queries", q, config.heads, "rows", at_rows),
        ("keys", k, config.kv_heads, "tokens", positions),
    ):
        turned = form.rotated_heads(value, heads, where)
        squeezed = graph.node("Squeeze", turned, graph.ints(0))
        graph.output(name, squeezed, TensorProto.FLOAT, [heads, count, config.head_dim])


def _emit_head(
    graph: GraphBuilder,
    tensors: TensorStore,
    config: LlmConfig,
    form: Dialect,
    x: str,
    pending: str,
) -> None:
    """Final norm and logits (1, vocab) of the one position that is left."""
    normed, _ = form.add_rms_norm(x, pending, _norm_weight(graph, tensors, "llm.norm"))
    last = graph.node("Squeeze", normed, graph.ints(1))
    # Tied or not, the head is stored (vocab, hidden), which Gemm multiplies transposed.
    name = "llm.embed_tokens.weight" if config.tied else "llm.lm_head.weight"
    head = graph.weight(name, tensors.get(name))
    logits = graph.node("Gemm", last, head, name="llm.lm_head", transB=1)
    graph.output("logits", logits, TensorProto.FLOAT, [1, config.vocab])


def _layer(
    graph: GraphBuilder,
    tensors: TensorStore,
    config: LlmConfig,
    form: Dialect,
    index: int,
    x: str,
    pending: str,
) -> tuple[str, str]:
    """One layer. ``pending`` is the branch still to be added to ``x``; returns both anew."""
    prefix = f"llm.layers.{index}"
    weight = _norm_weight(graph, tensors, f"{prefix}.input_layernorm")
    normed, x = form.add_rms_norm(x, pending, weight)
    names = tuple(f"{prefix}.self_attn.{part}_proj" for part in "qkv")
    q, k, v = packed_linear(graph, tensors, names, f"{prefix}.self_attn.qkv", normed)
    mixed = form.attention(index, q, k, v)
    if index == config.layers - 1:
        # Only the last position is read from here on; its keys and values are in the cache.
        mixed, x = _last_position(graph, mixed), _last_position(graph, x)
    mixed = linear(graph, tensors, f"{prefix}.self_attn.o_proj", mixed)
    weight = _norm_weight(graph, tensors, f"{prefix}.post_attention_layernorm")
    normed, x = form.add_rms_norm(x, mixed, weight)
    names = (f"{prefix}.mlp.gate_proj", f"{prefix}.mlp.up_proj")
    gate, up = packed_linear(graph, tensors, names, f"{prefix}.mlp.gate_up", normed)
    gate = activation(graph, config.activation, gate, fused=form.fused)
    hidden = graph.node("Mul", gate, up)
    return x, linear(graph, tensors, f"{prefix}.mlp.down_proj", hidden)


def _norm_weight(graph: GraphBuilder, tensors: TensorStore, prefix: str) -> str:
    return graph.weight(f"{prefix}.weight", tensors.get(f"{prefix}.weight"))


def _last_position(graph: GraphBuilder, x: str) -> str:
    end = graph.ints(_TO_END)
    return graph.node("Slice", x, graph.ints(-1), end, graph.ints(1))
