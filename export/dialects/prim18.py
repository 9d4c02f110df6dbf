"""Operators of opset 18 alone, with a concatenated KV cache: TensorRT 8.6 to 10.13.

The additive attention bias (causality, sliding window) and the position ids are inputs, so the
graph has no shape arithmetic.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from export.architecture import LlmConfig
from export.dialects.base import Dialect
from export.graph import GraphBuilder
from export.rope import cos_sin_tables


class Form(Dialect):
    """Dialect ``prim18``; its positions are always explicit."""

    def __init__(
        self,
        graph: GraphBuilder,
        config: LlmConfig,
        max_kv: int,
        explicit_positions: bool = True,
        expose_queries: bool = False,
    ) -> None:
        super().__init__(graph, config, max_kv, explicit_positions, expose_queries)
        self._halves: list[str] = []

    def declare_inputs(self) -> None:
        """position_ids (1, S) int64; attention_bias (1, 1, S, past + S) float32."""
        graph = self.graph
        positions = graph.input("position_ids", TensorProto.INT64, [1, "tokens"])
        bias = graph.input("attention_bias", TensorProto.FLOAT, [1, 1, "tokens", "total"])
        # (1, 1, 1, S, T): broadcasts over key-value heads and the queries that share one.
        self._bias = graph.node("Unsqueeze", bias, graph.ints(1))
        self._rotations = self._tables(positions)

    def attention(self, layer: int, q: str, k: str, v: str) -> str:
        """Softmax(q k^T + bias) v with keys shared by groups of query heads."""
        graph, config = self.graph, self.config
        dim, groups = config.head_dim, config.heads // config.kv_heads
        query = self._rotate(self._heads(q, config.heads), self._rotations, f"queries.{layer}")
        if self.expose_queries:
            graph.output(query, query, TensorProto.FLOAT, [1, config.heads, "tokens", dim])
        query = graph.node("Mul", query, graph.scalar(dim**-0.5))
        query = graph.node("Reshape", query, graph.ints(1, config.kv_heads, groups, -1, dim))
        key = self._extend(
            layer, "key", self._rotate(self._heads(k, config.kv_heads), self._rotations)
        )
        value = self._extend(layer, "value", self._heads(v, config.kv_heads))
        key = graph.node(
            "Transpose", graph.node("Unsqueeze", key, graph.ints(2)), perm=[0, 1, 2, 4, 3]
        )
        scores = graph.node("Add", graph.node("MatMul", query, key), self._bias)
        weights = graph.node("Softmax", scores, axis=-1)
        mixed = graph.node("MatMul", weights, graph.node("Unsqueeze", value, graph.ints(2)))
        mixed = graph.node("Reshape", mixed, graph.ints(1, config.heads, -1, dim))
        mixed = graph.node("Transpose", mixed, perm=[0, 2, 1, 3])
        return graph.node("Reshape", mixed, graph.ints(1, -1, config.heads * dim))

    def rotated_heads(self, x: str, heads: int, positions: str) -> str:
        """(1, S, heads * head_dim) at ``positions`` (1, S) -> (1, heads, S, head_dim), rotated."""
        return self._rotate(self._heads(x, heads), self._tables(positions))

    def _tables(self, positions: str) -> tuple[str, str]:
        """Cosines and sines (1, 1, S, head_dim) of positions (1, S)."""
        graph = self.graph
        if not self._halves:
            halves = cos_sin_tables(self.config, self.max_kv)
            self._halves = [
                graph.weight(f"rope.{name}", np.concatenate([half, half], axis=-1))
                for name, half in zip(("cos", "sin"), halves, strict=True)
            ]
        rows = [graph.node("Gather", table, positions, axis=0) for table in self._halves]
        cos, sin = (graph.node("Unsqueeze", row, graph.ints(1)) for row in rows)
        return cos, sin

    def _heads(self, x: str, heads: int) -> str:
        x = self.graph.node("Reshape", x, self.graph.ints(1, -1, heads, self.config.head_dim))
        return self.graph.node("Transpose", x, perm=[0, 2, 1, 3])

    def _rotate(self, x: str, tables: tuple[str, str], name: str = "") -> str:
        """Rotate (1, heads, S, head_dim): x cos + (-second half, first half) sin."""
        graph, half = self.graph, self.config.head_dim // 2
        cos, sin = tables
        first, second = graph.nodes("Split", [x, graph.ints(half, half)], 2, axis=-1)
        turned = graph.node("Concat", graph.node("Neg", second), first, axis=-1)
        parts = [graph.node("Mul", x, cos), graph.node("Mul", turned, sin)]
        return graph.nodes("Add", parts, [name] if name else 1)[0]

    def _extend(self, layer: int, kind: str, new: str) -> str:
        """Append (1, kv_heads, S, head_dim) to the layer's cache."""
        heads, dim = self.config.kv_heads, self.config.head_dim
        past = self.graph.input(f"past.{layer}.{kind}", TensorProto.FLOAT, [1, heads, "past", dim])
        present = f"present.{layer}.{kind}"
        self.graph.nodes("Concat", [past, new], [present], axis=2)
        self.graph.output(present, present, TensorProto.FLOAT, [1, heads, "total", dim])
        return present
