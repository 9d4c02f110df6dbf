"""Attention of chosen query rows in a decoder layer, computed beside the layer.

Only the projections of the asked rows (queries) and of the rows in flight (keys) are computed; the
keys of earlier turns come from the KV cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from edge_atp.errors import InferenceError
from edge_atp.hf.family import Host, Module, Tensor
from edge_atp.hf.hooks.projections import rotate
from edge_atp.pruning.attention import attention_rows


@dataclass(frozen=True)
class LayerInput:
    """(B, m, H) states and (B or 1, m, d) cosine and sine of their positions."""

    states: Tensor
    rotary: tuple[Tensor, Tensor] | None


class AttentionView:
    """What a cutting rule may look at in front of a layer."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._tapped: dict[int, LayerInput] = {}
        self._entering: LayerInput | None = None
        self._visual: Tensor | None = None
        self._valid: Tensor | None = None
        self._cache: Any = None
        self._past: Callable[[int], Tensor | None] = lambda _layer: None

    def begin(
        self, visual: Tensor, valid: Tensor, cache: Any, past: Callable[[int], Tensor | None]
    ) -> None:
        """A new prompt: row flags (B, m), its cache, and the validity of the cached keys."""
        self._tapped.clear()
        self._entering = None
        self._visual, self._valid = visual, valid
        self._cache, self._past = cache, past

    def capture(self, layer: int) -> Any:
        """Hook that keeps the attention input of a layer."""

        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states = args[0] if args else kwargs["hidden_states"]
            if states.shape[1] > 1:
                self._tapped[layer] = LayerInput(states, kwargs.get("position_embeddings"))

        return hook

    def enter(self, states: LayerInput, visual: Tensor, valid: Tensor) -> None:
        """The rows in front of the layer that is about to be cut."""
        self._entering = states
        self._visual, self._valid = visual, valid

    def visual_rows(self, sample: int) -> Tensor:
        """(N,) int64 rows that are visual tokens."""
        return self._flag("visual", self._visual)[sample].nonzero()[:, 0]

    def text_rows(self, sample: int) -> Tensor:
        """(T,) int64 rows behind the first visual token that are text: the question."""
        visual = self._flag("visual", self._visual)[sample]
        text = self._flag("valid", self._valid)[sample] & ~visual
        text &= visual.cumsum(0) > 0
        return text.nonzero()[:, 0]

    def last_row(self, sample: int) -> Tensor:
        """(1,) int64 row of the last prompt token."""
        return self._flag("valid", self._valid)[sample].nonzero()[-1]

    def states(self, sample: int) -> Tensor:
        """(m, H) states that enter the layer."""
        return self._input().states[sample]

    def rows(self, layer: int, sample: int, queries: Tensor, columns: Tensor) -> Tensor:
        """Attention weights of a layer.

        Args:
            layer: 0-based; a tapped layer, or the one that is entered.
            queries: (q,) rows that attend.
            columns: (c,) rows attended to.
        Returns:
            (heads, q, c) float32; each row's softmax runs over all keys it may see.
        """
        attention = self._host.layers[layer].self_attn
        states, rotary = self._normed(layer, sample)
        query = _heads(attention, "q", states[queries])
        key = _heads(attention, "k", states)
        if rotary is not None:
            cos, sin = rotary
            query, key = rotate(query, cos[queries], sin[queries]), rotate(key, cos, sin)
        past_keys, past_valid = self._cached(layer, sample, key)
        visible = torch.arange(len(states), device=key.device)[None] <= queries[:, None]
        visible &= self._flag("valid", self._valid)[sample]
        visible = torch.cat((past_valid.expand(len(queries), -1), visible), dim=1)
        scale = getattr(attention, "scaling", key.shape[-1] ** -0.5)
        weights = attention_rows(query, torch.cat((past_keys, key), dim=1), scale, visible)
        return weights[:, :, columns + past_keys.shape[1]]

    def _normed(self, layer: int, sample: int) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        source = self._tapped.get(layer)
        if source is None:
            source = self._input()
            states = self._host.layers[layer].input_layernorm(source.states[sample])
        else:
            states = source.states[sample]
        if source.rotary is None:
            return states, None
        cos, sin = (p[sample if len(p) > 1 else 0] for p in source.rotary)
        return states, (cos, sin)

    def _cached(self, layer: int, sample: int, key: Tensor) -> tuple[Tensor, Tensor]:
        """Keys of earlier turns (kv_heads, p, d) and which of them are not padding (p,)."""
        valid = self._past(layer)
        if valid is None:
            return key[:, :0], torch.zeros(0, dtype=torch.bool, device=key.device)
        # A tapped layer has written this prompt's keys behind those of earlier turns.
        return self._cache.layers[layer].keys[sample, :, : valid.shape[1]], valid[sample]

    def _input(self) -> LayerInput:
        if self._entering is None:
            raise InferenceError("no decoder layer is being entered")
        return self._entering

    @staticmethod
    def _flag(name: str, value: Tensor | None) -> Tensor:
        if value is None:
            raise InferenceError(f"no prompt is being processed: its {name} rows are unknown")
        return value


def _heads(attention: Module, kind: str, states: Tensor) -> Tensor:
    """(m, H) -> (heads, m, d), through the per-head normalisation where there is one."""
    heads = getattr(attention, f"{kind}_proj")(states).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{kind}_norm", None)
    return (heads if norm is None else norm(heads)).transpose(0, 1)
