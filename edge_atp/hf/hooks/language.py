"""The entrance of the language model: dropped visual tokens leave, positions and mask follow.

``generate`` keeps counting the tokens of the full prompt. This hook translates: it removes the NaN
rows that pruning left, cuts positions and mask alike, and remembers per KV cache which of the
caller's tokens the cache really holds, so that decoding and further turns stay aligned.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch

from edge_atp.errors import ConfigError, InferenceError
from edge_atp.hf.family import Host, Tensor
from edge_atp.hf.hooks.installation import Installation
from edge_atp.hf.hooks.rows import RowCut


@dataclass(frozen=True)
class CacheState:
    """What a KV cache holds of the caller's token sequence.

    seen: tokens of the caller's sequence processed so far.
    valid: (B, held) bool, rows of the cache's first layer that are not padding.
    dropped: (B, 1) int64, visual tokens left out so far.
    is_pruned, is_padded: whether any ``dropped`` is above 0, and any ``valid`` is false; kept as
        flags, so that a decoding step need not wait for the device.
    """

    seen: int
    valid: Tensor
    dropped: Tensor
    is_pruned: bool = False
    is_padded: bool = False

    @staticmethod
    def empty(batch: int, device: Any) -> CacheState:
        """Of a cache that holds nothing."""
        valid = torch.zeros((batch, 0), dtype=torch.bool, device=device)
        return CacheState(0, valid, torch.zeros((batch, 1), dtype=torch.int64, device=device))

    @property
    def held(self) -> int:
        """Rows in the cache's first layer."""
        return int(self.valid.shape[1])

    def extended(self, length: int, valid: Tensor, dropped: Tensor | None) -> CacheState:
        """After ``length`` more tokens, of which ``valid`` (B, m) rows were written."""
        return CacheState(
            seen=self.seen + length,
            valid=torch.cat((self.valid, valid), dim=1),
            dropped=self.dropped if dropped is None else self.dropped + dropped,
            is_pruned=self.is_pruned or dropped is not None,
            is_padded=self.is_padded or not bool(valid.all()),
        )


@dataclass
class Step:
    """One forward of the language model, after the cut.

    visual: (B, m) bool, rows that are visual tokens; None when the call had no input_ids to tell.
    valid: (B, held + m) bool, keys that are not padding.
    """

    visual: Tensor | None
    valid: Tensor
    cache: Any | None
    pruned: bool


class LanguageEntrance:
    """Hooks on the inner model (to learn the ids) and on the language model (to cut)."""

    def __init__(self, host: Host, position_policy: str) -> None:
        self._host = host
        self._policy = position_policy
        self._states: weakref.WeakKeyDictionary[Any, CacheState] = weakref.WeakKeyDictionary()
        self._visual: Tensor | None = None
        # Tokens of the running generate() call that its cache has not seen, set by the wrapper.
        self.new_tokens: int | None = None
        self.step: Step | None = None

    def install(self, installation: Installation) -> None:
        """Register the hooks."""
        installation.before(self._host.inner, self._before_inner)
        installation.before(self._host.language_model, self._before_language_model)
        if self._policy == "original":
            for layer in self._host.layers:
                installation.before(layer, self._hide_position_ids)

    def state(self, cache: Any) -> CacheState | None:
        """The state of a cache, None when it is new."""
        return None if cache is None else self._states.get(cache)

    def _before_inner(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Learn where visual tokens are; leave only tokens that the cache has not seen."""
        if args:
            kwargs = {**kwargs, "input_ids": args[0]}
        new = self._count_new(kwargs)
        for name in ("input_ids", "position_ids", "mm_token_type_ids", "cache_position"):
            value = kwargs.get(name)
            if value is not None and new is not None and value.shape[-1] > new:
                kwargs[name] = value[..., -new:]
        embeds = kwargs.get("inputs_embeds")
        if embeds is not None and new is not None and embeds.shape[1] > new:
            kwargs["inputs_embeds"] = embeds[:, -new:]
        ids = kwargs.get("input_ids")
        self._visual = None if ids is None else self._is_visual(ids)
        return args[1:], kwargs

    def _count_new(self, kwargs: dict[str, Any]) -> int | None:
        """How many of the given tokens are new; None where all are.

        ``generate`` slices a continued conversation by the cache's length, which is shorter than
        what was processed, so it hands over tokens of earlier turns again.
        """
        state = self.state(kwargs.get("past_key_values"))
        new, self.new_tokens = self.new_tokens, None
        if state is None:
            return None
        mask = kwargs.get("attention_mask")
        if new is None and mask is not None and mask.ndim == 2:
            new = mask.shape[1] - state.seen
        if new is not None and new < 1:
            raise InferenceError(
                f"the KV cache has processed {state.seen} tokens and none of the given ones is"
                " new; pass the conversation with at least one token after it"
            )
        return new

    def _is_visual(self, ids: Tensor) -> Tensor:
        choices = torch.tensor(list(self._host.placeholder_ids.values()), device=ids.device)
        return torch.isin(ids, choices)

    def _before_language_model(
        self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Cut the visual tokens that pruning dropped."""
        embeds = kwargs.get("inputs_embeds")
        if embeds is None:
            raise ConfigError(
                "the language model was called with input_ids; call the whole model while visual"
                " tokens are pruned, or edge_atp.hf.detach(model) first"
            )
        cache = kwargs.get("past_key_values")
        _check_cache(cache)
        batch, length = embeds.shape[:2]
        state = self.state(cache) or CacheState.empty(batch, embeds.device)
        _check_length(cache, state)
        valid = _new_part(kwargs.get("attention_mask"), state.seen, batch, length, embeds.device)
        keep, visual, dropped = _kept_rows(embeds), self._visual, None
        if keep is not None:
            cut = RowCut.from_mask(keep)
            kwargs["inputs_embeds"] = cut.rows(embeds)
            kwargs["position_ids"] = cut.positions(self._positions(kwargs, keep, state))
            valid, dropped = cut.flags(valid), (~keep).sum(1, keepdim=True)
            visual = None if visual is None else cut.flags(visual)
        elif state.is_pruned:
            kwargs["position_ids"] = self._positions(kwargs, torch.ones_like(valid), state)
        after = state.extended(length, valid, dropped)
        if after.is_pruned:
            _replace_mask(kwargs, after, cache, valid.shape[1])
        self.step = Step(visual, after.valid, cache, after.is_pruned)
        if cache is not None:
            self._states[cache] = after
        return args, kwargs

    def _hide_position_ids(
        self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Leave the layers only the rotary angles, which carry the positions.

        Flash attention takes gaps in the ids for boundaries of packed sequences.
        """
        gaps = self.step is not None and self.step.pruned
        if gaps and kwargs.get("position_embeddings") is not None:
            kwargs["position_ids"] = None
        return args, kwargs

    def _positions(self, kwargs: dict[str, Any], keep: Tensor, state: CacheState) -> Tensor:
        """Position ids of the tokens given, under the position policy, before the cut."""
        positions = kwargs.get("position_ids")
        if positions is None:
            stop = state.seen + keep.shape[1]
            positions = torch.arange(state.seen, stop, device=keep.device)[None]
        positions = positions.expand(*positions.shape[:-2], *keep.shape)
        if self._policy == "original":
            return positions
        before = state.dropped + (~keep).cumsum(1)
        return (positions - before).clamp(min=0)


def _kept_rows(embeds: Tensor) -> Tensor | None:
    """(B, n) bool, rows that pruning left; None when it left all."""
    # A decoding step carries one text token; looking for NaN there would only cost a sync.
    if embeds.shape[1] == 1:
        return None
    keep = ~torch.isnan(embeds[..., 0])
    if bool(keep.all()):
        return None
    if not bool(keep.any(1).all()):
        raise ConfigError(
            "a prefill chunk holds no kept token of some prompt; raise prefill_chunk_size"
        )
    return keep


def _replace_mask(kwargs: dict[str, Any], after: CacheState, cache: Any, rows: int) -> None:
    """Give the language model the mask of what the cache really holds."""
    # Without a cache an absent mask would make transformers read gaps in the position ids as
    # boundaries of packed sequences.
    absent = cache is not None and not after.is_padded
    kwargs["attention_mask"] = None if absent else after.valid.long()
    if kwargs.get("cache_position") is not None:
        # Releases before 5 build the mask from the rows' places in the cache.
        places = torch.arange(after.held - rows, after.held, device=after.valid.device)
        kwargs["cache_position"] = places


def _check_length(cache: Any, state: CacheState) -> None:
    held = 0 if cache is None else int(cache.get_seq_length())
    if held != state.held:
        raise InferenceError(
            f"the KV cache holds {held} tokens where {state.held} were written while pruning was"
            " attached; caches that were cropped, or filled before attach, cannot be continued"
        )


def _check_cache(cache: Any) -> None:
    if cache is not None and getattr(cache, "is_compileable", False):
        raise ConfigError(
            f"past_key_values is a {type(cache).__name__}, which has one length for all steps;"
            " pruned generation needs a DynamicCache (the default cache_implementation)"
        )


def _new_part(mask: Any, seen: int, batch: int, length: int, device: Any) -> Tensor:
    """(B, length) bool: which of the new tokens are not padding."""
    if mask is None:
        return torch.ones((batch, length), dtype=torch.bool, device=device)
    if isinstance(mask, dict) or mask.ndim != 2:
        raise ConfigError(
            "attention_mask must be 2-dimensional (batch, tokens) while visual tokens are pruned"
        )
    if mask.shape[1] not in (length, seen + length):
        raise ConfigError(
            f"attention_mask has {mask.shape[1]} columns; {seen + length} tokens were given so far"
        )
    return mask[:, -length:].to(device=device, dtype=torch.bool)
