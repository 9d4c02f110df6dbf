"""FastV in the engine: one cut, by the last prompt token's attention in the layer before."""

from __future__ import annotations

from edge_atp.pruning.fastv import rank
from edge_atp.pruning.schedule import Stage
from edge_atp.runtime.in_llm.base import CutRule, Kept, LayerView
from edge_atp.runtime.in_llm.passed import PassedBlock
from edge_atp.runtime.outputs import Float


class Rule(CutRule):
    """Tokens entering layer k are ranked by the attention row of layer k - 1."""

    # (heads, N) of the last prompt token, visual columns.
    _row: Float

    @property
    def follows(self) -> int:
        """The layers before the cut; the last of them scores."""
        return int(self.pruner.layer)

    def passed(self, block: PassedBlock) -> None:
        """Take the row from what the block computed; nothing is projected again."""
        layer = self.pruner.layer - 1
        if layer in block.layers:
            self._row = block.last_row(layer)[:, block.is_visual]

    def choose(self, view: LayerView, stage: Stage) -> Kept:
        """Rank by the last prompt token's attention."""
        return Kept(rank(self._row, stage.num_kept).kept_indices)
