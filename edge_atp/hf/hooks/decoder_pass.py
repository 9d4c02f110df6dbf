"""Bookkeeping of one forward through a decoder whose layers see fewer and fewer rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge_atp.hf.family import Tensor
from edge_atp.hf.hooks.rows import RowCut


@dataclass(frozen=True)
class LayerCut:
    """What a decoder layer was given of the whole sequence, kept with the cache.

    valid: (B, held) bool, keys of this layer that are not padding.
    dropped: (B, 1) int64, rows the layer does not have that the first layer has.
    is_cut: whether any row is missing (``dropped`` without a look at the device).
    """

    valid: Tensor
    dropped: Tensor
    is_cut: bool


@dataclass(frozen=True)
class Stage:
    """What consecutive layers with the same rows share.

    past, valid: what it was built from.
    result: what their caches hold afterwards.
    mask, rotary: what they are given instead of the model's own, where rows are missing.
    """

    past: LayerCut | None
    valid: Tensor
    result: LayerCut
    mask: Any = None
    rotary: tuple[Tensor, Tensor] | None = None


@dataclass
class Pass:
    """One forward through the decoder; (B, m) arrays run over the rows now in flight.

    visual, valid: bool, rows that are visual tokens, and rows that are not padding.
    origin: int64, place among the rows that entered the first layer.
    place: int64, place among the sample's visual tokens at the first layer.
    shift: int64, rows cut in front of this row so far.
    dropped: (B, 1) int64, rows cut so far.
    counts: visual tokens per sample before the first cut, empty for a decoding step.
    past: what the cache's layers held before.
    rotary: rotary angles of these rows, None before the first cut.
    stage: what the layers since the last cut share.
    """

    visual: Tensor
    valid: Tensor
    origin: Tensor
    place: Tensor
    shift: Tensor
    dropped: Tensor
    cache: Any | None
    counts: list[int]
    past: dict[int, LayerCut]
    rotary: tuple[Tensor, Tensor] | None = None
    is_cut: bool = False
    stage: Stage | None = None

    @property
    def has_visual(self) -> bool:
        """Whether this is a prompt with visual tokens; never true for a decoding step."""
        return any(self.counts)

    def cut(self, cut: RowCut, keep: Tensor) -> None:
        """Follow the rows."""
        self.is_cut = True
        self.shift = (self.shift + (~keep).cumsum(1)).gather(1, cut.index)
        self.dropped = self.dropped + (~keep).sum(1, keepdim=True)
        self.visual, self.valid = cut.flags(self.visual), cut.flags(self.valid)
        self.origin = self.origin.gather(1, cut.index)
        self.place = self.place.gather(1, cut.index)
        if self.rotary is not None:
            batch = len(keep)
            cos, sin = (cut.rows(part.expand(batch, -1, -1)) for part in self.rotary)
            self.rotary = cos, sin
