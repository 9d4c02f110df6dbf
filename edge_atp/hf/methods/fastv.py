"""FastV: cut once, by the last prompt token's attention in the layer before."""

from __future__ import annotations

from typing import Any

from edge_atp.hf.budget import Keep
from edge_atp.hf.hooks.attention_view import AttentionView
from edge_atp.hf.hooks.decoder import DecoderRule, Kept
from edge_atp.pruning.fastv import rank


class Rule(DecoderRule):
    """Tokens entering ``layer`` are ranked by the attention row of ``layer - 1``."""

    def __init__(self, method: Any, keep: Keep | None) -> None:
        self._method = method
        self._keep = keep

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """The one layer of the cut."""
        return (self._method.layer,)

    def taps(self, num_layers: int) -> tuple[int, ...]:
        """The layer that scores."""
        return (self._method.layer - 1,)

    def choose(self, layer: int, view: AttentionView, sample: int, num_visual: int) -> Kept:
        """Rank by the last prompt token's attention."""
        count = None if self._keep is None else self._keep.num_kept(num_visual)
        stage = self._method.schedule(num_visual, count).at(layer)
        visual = view.visual_rows(sample)
        row = view.rows(layer - 1, sample, view.last_row(sample), visual)[:, 0]
        return Kept(rank(row, stage.num_kept).kept_indices)
