"""Queries, keys and values of an attention module, from its own projections.

What a pruning score needs of one layer is computed beside the model's fused attention: a few query
rows against all keys. The layer itself keeps its attention implementation.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch

from edge_atp.errors import MissingSignalError
from edge_atp.hf.family import Module, Tensor
from edge_atp.hf.hooks.installation import Installation
from edge_atp.pruning.attention import attention_rows
from edge_atp.pruning.ops import mean_over

# Query rows scored at once when a whole attention matrix is reduced: bounds memory to
# heads * _CHUNK * n floats.
_CHUNK = 1024


class Heads(NamedTuple):
    """(..., heads, n, d) queries, (..., kv_heads, n, d) keys and values."""

    queries: Tensor
    keys: Tensor
    values: Tensor


class ProjectionTap:
    """Keeps what a vision attention module projected in its last call; nothing is recomputed."""

    def __init__(self, attention: Module) -> None:
        """
        Args:
            attention: module with ``q_proj``/``k_proj``/``v_proj`` or a fused ``qkv``.
        """
        self._attention = attention
        self._outputs: dict[str, Tensor] = {}
        self._kwargs: dict[str, Any] = {}

    def install(self, installation: Installation) -> None:
        """Register the capturing hooks."""
        names = ("qkv",) if hasattr(self._attention, "qkv") else ("q_proj", "k_proj", "v_proj")
        for name in names:
            installation.after(getattr(self._attention, name), self._store(name))
        installation.before(self._attention, self._store_kwargs)

    def clear(self) -> None:
        """Forget the captured tensors."""
        self._outputs.clear()
        self._kwargs.clear()

    @property
    def bounds(self) -> list[tuple[int, int]] | None:
        """Start and end of each sequence of a packed encoder, None for batched ones."""
        edges = self._kwargs.get("cu_seqlens")
        if edges is None:
            return None
        edges = edges.tolist()
        return list(itertools.pairwise(edges))

    def heads(self) -> Heads:
        """(T, heads, n, d) each, or (heads, n, d) for packed sequences; positions rotated in."""
        count = self._attention.num_heads
        if not self._outputs:
            raise MissingSignalError(
                "the vision encoder did not run before its attention was needed"
            )
        if "qkv" in self._outputs:
            fused = self._outputs["qkv"].unflatten(-1, (3, count, -1))
            parts = [fused.select(-3, part).transpose(-3, -2) for part in range(3)]
        else:
            projected = [self._outputs[name] for name in ("q_proj", "k_proj", "v_proj")]
            parts = [part.unflatten(-1, (count, -1)).transpose(-3, -2) for part in projected]
        rotary = self._kwargs.get("position_embeddings")
        if rotary is not None:
            cos, sin = (angle.float() for angle in rotary)
            parts[:2] = [rotate(part.float(), cos, sin).to(part.dtype) for part in parts[:2]]
        return Heads(*parts)

    def _store(self, name: str) -> Any:
        def hook(_module: Any, _args: Any, _kwargs: Any, output: Tensor) -> None:
            self._outputs[name] = output

        return hook

    def _store_kwargs(self, _module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        self._kwargs = {
            name: kwargs[name] for name in ("cu_seqlens", "position_embeddings") if name in kwargs
        }


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, half-split convention: (..., n, d) with (..., n, d) angles."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


def cls_rows(heads: Heads) -> Tensor:
    """Attention of token 0 to all others: (T, heads, n, d) -> (T, heads, n - 1) float32."""
    rows = [
        attention_rows(queries[:, :1], keys)[:, 0, 1:]
        for queries, keys in zip(heads.queries, heads.keys, strict=True)
    ]
    return torch.stack(rows)


def received_rows(queries: Tensor, keys: Tensor) -> Tensor:
    """Mean attention each token receives: (heads, n, d) -> (heads, n) float32.

    Summed in float64, so that tokens with equal columns have equal means in any order of summation.
    """
    count = queries.shape[1]
    parts = [queries[:, start : start + _CHUNK] for start in range(0, count, _CHUNK)]
    means = [mean_over(attention_rows(part, keys), 1) * (part.shape[1] / count) for part in parts]
    return torch.stack(means).sum(0).float()
