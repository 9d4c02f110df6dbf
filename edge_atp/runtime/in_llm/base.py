"""What a cut inside the language model sees and decides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_atp.pruning.attention import attention_rows
from edge_atp.pruning.schedule import Stage
from edge_atp.runtime.outputs import Float

# (layer, hidden (S, H), position_ids (S,), rows (R,)) -> queries (heads, R, d), keys (kv, S, d)
Probe = Callable[[int, Float, NDArray[np.int64], NDArray[np.int64]], tuple[Float, Float]]


@dataclass(frozen=True)
class LayerView:
    """The sequence that enters a layer during prefill.

    layer: its number.
    hidden: (S, H) hidden states entering it.
    position_ids: (S,) as the layer would see them.
    is_visual: (S,) bool.
    """

    layer: int
    hidden: Float
    position_ids: NDArray[np.int64]
    is_visual: NDArray[np.bool_]
    probe: Probe

    @property
    def visual_rows(self) -> NDArray[np.int64]:
        """Places of the visual tokens in the sequence."""
        return np.flatnonzero(self.is_visual)

    @property
    def text_rows(self) -> NDArray[np.int64]:
        """Places of all other tokens."""
        return np.flatnonzero(~self.is_visual)

    def attention(self, rows: NDArray[np.int64]) -> Float:
        """Causal softmax attention of ``rows`` over the sequence, visual columns: (heads, R, N)."""
        queries, keys = self.probe(self.layer, self.hidden, self.position_ids, rows)
        visible = np.arange(len(self.hidden))[None, :] <= rows[:, None]
        full: Float = attention_rows(queries, keys, visible=visible)
        return full[:, :, self.visual_rows]


class CutRule(ABC):
    """Runs one method.

    Class attributes:
        renumber: number the remaining tokens anew after a cut; else they keep their positions.
        scoring_offset: -1 where the layer before the cut scores, 0 where the entered one does.
    """

    renumber: ClassVar[bool] = False
    scoring_offset: ClassVar[int] = 0

    def __init__(self, pruner: Any) -> None:
        self.pruner = pruner

    @abstractmethod
    def choose(self, view: LayerView, stage: Stage) -> NDArray[np.int64]:
        """Which visual tokens enter ``stage.layer``: (K,) ascending, into those of ``view``.

        Args:
            view: of the scoring layer, ``stage.layer + scoring_offset``.
        """
