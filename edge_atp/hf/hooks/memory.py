"""Dropping visual tokens in front of a resampler (Q-Former, perceiver).

The resampler reads the encoder's tokens by cross-attention and always gives the same number of
latents, so nothing changes behind it: prompts, positions and KV cache stay as they are. A CLS token
in front of the patches stays, and does not count.
"""

from __future__ import annotations

from typing import Any

import torch

from edge_atp.errors import ConfigError
from edge_atp.hf.family import Host, Tensor, VisionCall
from edge_atp.hf.hooks.installation import Installation
from edge_atp.hf.hooks.projector import Chooser
from edge_atp.types import Selection

_MEMORY, _MASK = "encoder_hidden_states", "encoder_attention_mask"


class MemoryCut:
    """A hook in front of the resampler (``host.projector``)."""

    def __init__(self, host: Host, chooser: Chooser) -> None:
        self._host = host
        self._chooser = chooser
        self.selections: tuple[Selection, ...] = ()

    def install(self, installation: Installation) -> None:
        """Register the hook."""
        installation.before(self._host.projector, self._before_resampler)

    def _before_resampler(self, _module: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        by_name = _MEMORY in kwargs
        memory = kwargs[_MEMORY] if by_name else args[0]
        if memory is None:
            return None
        cut = self._cut(memory)
        if not by_name:
            return (cut, *args[1:]), kwargs
        kwargs = {**kwargs, _MEMORY: cut}
        if kwargs.get(_MASK) is not None:
            kwargs[_MASK] = kwargs[_MASK].new_ones(cut.shape[:2])
        return args, kwargs

    def _cut(self, memory: Tensor) -> Tensor:
        """(T, CLS + n, D) -> (T, CLS + K, D)."""
        first = int(self._host.vision.has_cls)
        patches = memory[:, first:]
        try:
            chosen = self._chooser.choose(VisionCall("image", {}), patches, None)
        finally:
            self._chooser.clear()
        self.selections = chosen.selections
        rows = patches.flatten(0, 1)[chosen.slots] if chosen.tokens is None else chosen.tokens
        counts = torch.bincount(chosen.slots // chosen.shape[1], minlength=len(memory))
        if int(counts.min()) != int(counts.max()):
            raise ConfigError(
                f"the method keeps {counts.tolist()} tokens of the images of one batch; the"
                " resampler needs equally many, run the images one by one"
            )
        kept = rows.to(memory.dtype).view(len(memory), -1, memory.shape[-1])
        return torch.cat((memory[:, :first], kept), dim=1)
