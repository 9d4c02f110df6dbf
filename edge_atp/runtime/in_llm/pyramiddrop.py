"""PyramidDrop in the engine: staged cuts by the last prompt token in the layer entered."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_atp.pruning.pyramiddrop import rank
from edge_atp.pruning.schedule import Stage
from edge_atp.runtime.in_llm.base import CutRule, LayerView


class Rule(CutRule):
    """Every stage ranks the tokens that are left and numbers them anew, as published."""

    renumber: ClassVar[bool] = True

    def choose(self, view: LayerView, stage: Stage) -> NDArray[np.int64]:
        """Rank by the last prompt token's attention."""
        row = view.attention(np.array([len(view.hidden) - 1]))[:, 0]
        kept: NDArray[np.int64] = rank(row, stage.num_kept).kept_indices
        return kept
