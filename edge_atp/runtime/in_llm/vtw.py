"""VTW in the engine: from one layer on, the language model works without visual tokens."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from edge_atp.pruning.schedule import Stage
from edge_atp.runtime.in_llm.base import CutRule, Kept, LayerView


class Rule(CutRule):
    """All visual tokens leave before the method's layer."""

    takes_budget: ClassVar[bool] = False

    def choose(self, view: LayerView, stage: Stage) -> Kept:
        """Nothing stays."""
        return Kept(np.zeros(0, np.int64))
