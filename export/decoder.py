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
from export.graph import GraphBuilder
from export.layers import activation, linear, packed_linear


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
    end = graph.ints(np.iinfo(np.int64).max)
    return graph.node("Slice", x, graph.ints(-1), end, graph.ints(1))
