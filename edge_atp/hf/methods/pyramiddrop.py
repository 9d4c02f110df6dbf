"""PyramidDrop: cut in stages, by the last prompt token's query in the layer that is entered."""

from __future__ import annotations

from typing import Any

from edge_atp.hf.budget import Keep
from edge_atp.hf.hooks.attention_view import AttentionView
from edge_atp.hf.hooks.decoder import DecoderRule, Kept
from edge_atp.pruning.pyramiddrop import rank


class Rule(DecoderRule):
    """Every stage ranks the tokens that are left."""

    position_policy = "compact"  # as published

    def __init__(self, method: Any, keep: Keep | None) -> None:
        self._method = method
        self._keep = keep

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """The stages' layers."""
        return tuple(self._method.layers)

    def choose(self, layer: int, view: AttentionView, sample: int, num_visual: int) -> Kept:
        """Rank by the last prompt token's attention."""
        count = None if self._keep is None else self._keep.num_kept(num_visual)
        stage = self._method.schedule(num_visual, count).at(layer)
        row = view.rows(layer, sample, view.last_row(sample), view.visual_rows(sample))[:, 0]
        return Kept(rank(row, stage.num_kept).kept_indices)
