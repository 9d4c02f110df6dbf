"""Progressive ATP in the engine: staged cuts by text-to-visual and visual-to-visual attention."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_atp.pruning.atp_progressive import rank
from edge_atp.pruning.schedule import Stage
from edge_atp.runtime.in_llm.base import CutRule, LayerView


class Rule(CutRule):
    """Both attention blocks are those of the layer that fewer tokens enter."""

    def choose(self, view: LayerView, stage: Stage) -> NDArray[np.int64]:
        """Blend what the text behind the image attends to with what the patches do."""
        # Text before the image cannot see it: its rows hold nothing but zeros.
        text = view.text_rows[view.text_rows > view.visual_rows[0]]
        kept: NDArray[np.int64] = rank(
            view.attention(text),
            view.attention(view.visual_rows),
            stage.num_kept,
            self.pruner.alpha,
        ).kept_indices
        return kept
