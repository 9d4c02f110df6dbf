"""Standard operators of opset 24 on a static KV cache: TensorRT from 10.15, newer ONNX Runtimes.

RMSNormalization, RotaryEmbedding, TensorScatter and Attention are single operators here. The
cache has ``max_kv`` positions and is written in place; the additive bias hides what is not filled.
"""

from __future__ import annotations

from typing import ClassVar

from onnx import TensorProto

from export.dialects.base import Dialect
from export.graph import Shape
from export.rope import cos_sin_tables


class Form(Dialect):
    """Dialect ``std24``; its positions are always explicit."""

    opset: ClassVar[int] = 24

    def declare_inputs(self) -> None:
        """position_ids (1, S); write_indices (1,) int64; attention_bias (1, 1, S, max_kv)."""
        graph = self.graph
        self._positions = graph.input("position_ids", TensorProto.INT64, [1, "tokens"])
        self._write = graph.input("write_indices", TensorProto.INT64, [1])
        self._bias = graph.input("attention_bias", TensorProto.FLOAT, [1, 1, "tokens", self.max_kv])
        cos, sin = cos_sin_tables(self.config, self.max_kv)
        self._cos = graph.weight("rope.cos", cos)
        self._sin = graph.weight("rope.sin", sin)

    def attention(self, layer: int, q: str, k: str, v: str) -> str:
        """Rotate, write keys and values into the cache, attend over all of it."""
        graph, config = self.graph, self.config
        query = self._rotate(self._heads(q, config.heads), f"queries.{layer}")
        if self.expose_queries:
            shape: Shape = [1, config.heads, "tokens", config.head_dim]
            graph.output(query, query, TensorProto.FLOAT, shape)
        keys = self._rotate(self._heads(k, config.kv_heads), f"rotated_keys.{layer}")
        key = self._store(layer, "key", keys)
        value = self._store(layer, "value", self._heads(v, config.kv_heads))
        mixed = graph.node("Attention", query, key, value, self._bias, scale=config.head_dim**-0.5)
        mixed = graph.node("Transpose", mixed, perm=[0, 2, 1, 3])
        return graph.node("Reshape", mixed, graph.ints(1, -1, config.heads * config.head_dim))

    def rms_norm(self, x: str, weight: str) -> str:
        """RMSNorm as one operator."""
        return self.graph.node("RMSNormalization", x, weight, axis=-1, epsilon=self.config.norm_eps)

    def _heads(self, x: str, heads: int) -> str:
        x = self.graph.node("Reshape", x, self.graph.ints(1, -1, heads, self.config.head_dim))
        return self.graph.node("Transpose", x, perm=[0, 2, 1, 3])

    def _rotate(self, x: str, name: str) -> str:
        inputs = [x, self._cos, self._sin, self._positions]
        return self.graph.nodes("RotaryEmbedding", inputs, [name])[0]

    def _store(self, layer: int, kind: str, new: str) -> str:
        """Write (1, kv_heads, S, head_dim) at ``write_indices``."""
        shape = [1, self.config.kv_heads, self.max_kv, self.config.head_dim]
        past = self.graph.input(f"past.{layer}.{kind}", TensorProto.FLOAT, shape)
        present = f"present.{layer}.{kind}"
        # TensorRT reads no other axis than -2, though 2 is the same.
        self.graph.nodes("TensorScatter", [past, new, self._write], [present], axis=-2)
        self.graph.output(present, present, TensorProto.FLOAT, shape)
        return present
