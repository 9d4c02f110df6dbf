"""Progressive ATP in the engine: staged cuts by text-to-visual and visual-to-visual attention."""

from __future__ import annotations

from edge_atp.pruning.atp_progressive import rank
from edge_atp.pruning.schedule import Stage
from edge_atp.runtime.in_llm.base import CutRule, Kept, LayerView


class Rule(CutRule):
    """Both attention blocks are those of the layer that fewer tokens enter."""

    def choose(self, view: LayerView, stage: Stage) -> Kept:
        """Blend what the text behind the image attends to with what the patches do."""
        text = view.question_rows
        relevance = view.attention(text if len(text) else view.last_row)
        saliency = view.attention(view.visual_rows)
        return Kept(rank(relevance, saliency, stage.num_kept, self.pruner.alpha).kept_indices)
