"""FastV in the engine: one cut, by the last prompt token's attention in the layer before."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_atp.pruning.fastv import rank
from edge_atp.pruning.schedule import Stage
from edge_atp.runtime.in_llm.base import CutRule, LayerView


class Rule(CutRule):
    """Tokens entering layer k are ranked by the attention row of layer k - 1."""

    scoring_offset: ClassVar[int] = -1

    def choose(self, view: LayerView, stage: Stage) -> NDArray[np.int64]:
        """Rank by the last prompt token's attention."""
        row = view.attention(np.array([len(view.hidden) - 1]))[:, 0]
        kept: NDArray[np.int64] = rank(row, stage.num_kept).kept_indices
        return kept
