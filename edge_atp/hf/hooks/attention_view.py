"""Attention of chosen query rows in a decoder layer, computed beside the layer.

Only the projections of the asked rows (queries) and of the rows in flight (keys) are computed; the
keys of earlier turns come from the KV cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class _Past(NamedTuple):
    """(kv_heads, p, d) cached keys and values, (p,) bool which are not padding."""

    keys: Tensor
    values: Tensor
    valid: Tensor


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
        self.release()
        self._visual, self._valid = visual, valid
        self._cache, self._past = cache, past

    def release(self) -> None:
        """Let go of the captured states."""
        self._tapped.clear()
        self._entering = None

    def capture(self, layer: int) -> Any:
        """Hook that keeps the attention input of a layer."""

        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states = args[0] if args else kwargs["hidden_states"]
            if states.shape[1] > 1:
                self._tapped[layer] = LayerInput(states, kwargs.get("position_embeddings"))

        return hook

    def follow(self, visual: Tensor, valid: Tensor) -> None:
        """The rows in flight (B, m), after a cut."""
        self._visual, self._valid = visual, valid

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

    def rows_to_last_visual(self, sample: int) -> Tensor:
        """(r,) int64 rows up to the last visual token, padding left out."""
        end = int(self.visual_rows(sample)[-1]) + 1
        return self._flag("valid", self._valid)[sample, :end].nonzero()[:, 0]

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
        query = _rotated(_heads(attention, "q", states[queries]), rotary, queries)
        key = _rotated(_heads(attention, "k", states), rotary)
        past = self._cached(layer, sample, key)
        visible = torch.arange(len(states), device=key.device)[None] <= queries[:, None]
        visible &= self._flag("valid", self._valid)[sample]
        visible = torch.cat((past.valid.expand(len(queries), -1), visible), dim=1)
        scale = getattr(attention, "scaling", key.shape[-1] ** -0.5)
        weights = attention_rows(query, torch.cat((past.keys, key), dim=1), scale, visible)
        return weights[:, :, columns + past.keys.shape[1]]

    def values(self, layer: int, sample: int, rows: Tensor) -> Tensor:
        """(kv_heads, r, d) value vectors of a layer's rows."""
        states, _ = self._normed(layer, sample)
        return _heads(self._host.layers[layer].self_attn, "v", states[rows])

    def side_row(
        self, layer: int, sample: int, state: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run a row that is no token through a layer.

        It attends to ``rows``, to earlier turns and to itself, from the position behind the last
        of ``rows``; no other row sees it.

        Args:
            state: (H,) the row in front of the layer.
            rows: (r,) ascending.
        Returns:
            (H,) the row behind the layer, and its (heads, r + 1) attention, itself last.
        """
        block = self._host.layers[layer]
        attention = block.self_attn
        states, rotary = self._normed(layer, sample)
        normed = block.input_layernorm(state[None])
        place = rows[-1:].clone().add_(1).clamp_(max=len(states) - 1)
        query = _rotated(_heads(attention, "q", normed), rotary, place)
        own_key = _rotated(_heads(attention, "k", normed), rotary, place)
        key = _rotated(_heads(attention, "k", states[rows]), rotary, rows)
        past = self._cached(layer, sample, key)
        keys = torch.cat((past.keys, key, own_key), dim=1)
        value = _heads(attention, "v", torch.cat((states[rows], normed)))
        values = torch.cat((past.values, value), dim=1)
        visible = torch.cat((past.valid, past.valid.new_ones(len(rows) + 1)))
        scale = getattr(attention, "scaling", key.shape[-1] ** -0.5)
        weights = attention_rows(query, keys, scale, visible)
        values = values.repeat_interleave(len(weights) // len(values), dim=0)
        mixed = (weights.to(values.dtype) @ values).transpose(0, 1).flatten(1)
        state = state + attention.o_proj(mixed)[0]
        state = state + block.mlp(block.post_attention_layernorm(state[None]))[0]
        return state, weights[:, 0, past.keys.shape[1] :]

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

    def _cached(self, layer: int, sample: int, like: Tensor) -> _Past:
        """What a layer's cache holds of earlier turns."""
        valid = self._past(layer)
        if valid is None:
            empty = torch.zeros(0, dtype=torch.bool, device=like.device)
            return _Past(like[:, :0], like[:, :0], empty)
        # A tapped layer has written this prompt's keys behind those of earlier turns.
        cached, held = self._cache.layers[layer], valid.shape[1]
        return _Past(cached.keys[sample, :, :held], cached.values[sample, :, :held], valid[sample])

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


def _rotated(
    heads: Tensor, rotary: tuple[Tensor, Tensor] | None, rows: Tensor | None = None
) -> Tensor:
    """Rotate positions in; ``rows`` picks the angles, all of them when left out."""
    if rotary is None:
        return heads
    cos, sin = rotary if rows is None else (part[rows] for part in rotary)
    return rotate(heads, cos, sin)
