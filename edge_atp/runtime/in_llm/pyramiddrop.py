"""PyramidDrop in the engine: staged cuts by the last prompt token in the layer entered."""

from __future__ import annotations

from typing import ClassVar

from edge_atp.pruning.pyramiddrop import rank
from edge_atp.pruning.schedule import Stage
from edge_atp.runtime.in_llm.base import CutRule, Kept, LayerView


class Rule(CutRule):
    """Every stage ranks the tokens that are left and numbers them anew, as published."""

    position_policy: ClassVar[str] = "compact"

    def choose(self, view: LayerView, stage: Stage) -> Kept:
        """Rank by the last prompt token's attention."""
        row = view.attention(view.last_row)[:, 0]
        return Kept(rank(row, stage.num_kept).kept_indices)
