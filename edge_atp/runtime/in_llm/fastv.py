"""FastV in the engine: one cut, by the last prompt token's attention in the layer before."""

from __future__ import annotations

from typing import ClassVar

from edge_atp.pruning.fastv import rank
from edge_atp.pruning.schedule import Stage
from edge_atp.runtime.in_llm.base import CutRule, Kept, LayerView


class Rule(CutRule):
    """Tokens entering layer k are ranked by the attention row of layer k - 1."""

    scoring_offset: ClassVar[int] = -1

    def choose(self, view: LayerView, stage: Stage) -> Kept:
        """Rank by the last prompt token's attention."""
        row = view.attention(view.last_row)[:, 0]
        return Kept(rank(row, stage.num_kept).kept_indices)
