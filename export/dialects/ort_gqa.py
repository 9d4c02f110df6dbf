"""ONNX Runtime on CPU and CUDA: com.microsoft.GroupQueryAttention on a shared KV buffer.

Rotation, the cache update and attention are one operator; past and present are the same buffer
of ``max_kv`` positions, bound by the runtime.
"""

from __future__ import annotations

from onnx import TensorProto

from export.dialects.base import Dialect
from export.graph import CONTRIB
from export.rope import cos_sin_tables


class Form(Dialect):
    """Dialect ``ort-gqa``."""

    fused = True

    def declare_inputs(self) -> None:
        """seqlens_k (1,) int32: index of the last key; total_sequence_length () int32.

        With explicit positions also position_ids (1, S) int64, for sequences with gaps, and an
        operator that rotates by them: GroupQueryAttention itself takes only the first position
        of a prompt and counts on from there.
        """
        self._last = self.graph.input("seqlens_k", TensorProto.INT32, [1])
        self._total = self.graph.input("total_sequence_length", TensorProto.INT32, [])
        self._positions = ""
        if self.explicit_positions:
            self._positions = self.graph.input("position_ids", TensorProto.INT64, [1, "tokens"])
        cos, sin = cos_sin_tables(self.config, self.max_kv)
        self._cos = self.graph.weight("rope.cos", cos)
        self._sin = self.graph.weight("rope.sin", sin)

    def attention(self, layer: int, q: str, k: str, v: str) -> str:
        """GroupQueryAttention with rotation inside."""
        config = self.config
        shape = [1, config.kv_heads, self.max_kv, config.head_dim]
        past = [
            self.graph.input(f"past.{layer}.{kind}", TensorProto.FLOAT, shape)
            for kind in ("key", "value")
        ]
        present = [f"present.{layer}.{kind}" for kind in ("key", "value")]
        output = f"attention_{layer}:out"
        inputs = [q, k, v, *past, self._last, self._total]
        if self.explicit_positions:
            inputs[0] = self._rotate(q, f"queries.{layer}")
            inputs[1] = self._rotate(k, f"rotated_keys.{layer}")
            if self.expose_queries:
                width = config.heads * config.head_dim
                self.graph.output(inputs[0], inputs[0], TensorProto.FLOAT, [1, "tokens", width])
        else:
            inputs += [self._cos, self._sin]
        self.graph.nodes(
            "GroupQueryAttention",
            inputs,
            [output, *present],
            domain=CONTRIB,
            name=f"attention_{layer}",
            num_heads=config.heads,
            kv_num_heads=config.kv_heads,
            do_rotary=int(not self.explicit_positions),
            local_window_size=config.sliding_window or -1,
        )
        for name in present:
            self.graph.output(name, name, TensorProto.FLOAT, shape)
        return output

    def _rotate(self, x: str, name: str) -> str:
        inputs = [x, self._positions, self._cos, self._sin]
        return self.graph.nodes("RotaryEmbedding", inputs, [name], domain=CONTRIB)[0]

    def add_rms_norm(self, x: str, branch: str, weight: str) -> tuple[str, str]:
        """The residual sum and its norm as one operator."""
        if not branch:
            return self.rms_norm(x, weight), x
        self._norms = getattr(self, "_norms", 0) + 1
        name = f"add_norm_{self._norms}"
        outputs = self.graph.nodes(
            "SkipSimplifiedLayerNormalization",
            [x, branch, weight],
            [f"{name}:norm", "", "", f"{name}:sum"],
            domain=CONTRIB,
            name=name,
            epsilon=self.config.norm_eps,
        )
        return outputs[0], outputs[3]
