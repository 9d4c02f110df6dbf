"""What a decoder dialect provides, and RMSNorm in standard operators, which most of them use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from export.architecture import LlmConfig
from export.graph import OPSET, GraphBuilder


class Dialect(ABC):
    """Emits the parts of a decoder layer that differ between engines.

    Class attributes:
        opset: of the default operator domain.
        fused: whether com.microsoft operators may be used.
    """

    opset: ClassVar[int] = OPSET
    fused: ClassVar[bool] = False

    def __init__(
        self,
        graph: GraphBuilder,
        config: LlmConfig,
        max_kv: int,
        explicit_positions: bool = False,
        expose_queries: bool = False,
    ) -> None:
        """
        Args:
            explicit_positions: take the position ids as an input, for sequences with gaps.
            expose_queries: put out each layer's rotated queries, ``queries.<layer>``, from which
                the host computes attention rows; costs nothing where nobody asks for them.
        """
        self.graph = graph
        self.config = config
        self.max_kv = max_kv
        self.explicit_positions = explicit_positions
        self.expose_queries = expose_queries

    @abstractmethod
    def declare_inputs(self) -> None:
        """Declare the graph inputs that every layer shares (positions, masks, lengths)."""

    @abstractmethod
    def attention(self, layer: int, q: str, k: str, v: str) -> str:
        """Causal attention of new queries over past and new keys.

        Args:
            q: (1, S, heads * head_dim); k, v: (1, S, kv_heads * head_dim), before rotation.
        Returns:
            (1, S, heads * head_dim); declares the layer's cache inputs and outputs.
        """

    def add_rms_norm(self, x: str, branch: str, weight: str) -> tuple[str, str]:
        """RMSNorm of x + branch (branch may be ""); returns the norm and the sum."""
        total = self.graph.node("Add", x, branch) if branch else x
        return self.rms_norm(total, weight), total

    def rms_norm(self, x: str, weight: str) -> str:
        """RMSNorm over the last axis in standard operators."""
        graph = self.graph
        square = graph.node("Mul", x, x)
        mean = graph.reduce("ReduceMean", square, -1, keepdims=True)
        shifted = graph.node("Add", mean, graph.scalar(self.config.norm_eps))
        scaled = graph.node("Div", x, graph.node("Sqrt", shifted))
        return graph.node("Mul", scaled, weight)
