"""What a cut inside the language model sees and decides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_atp.pruning.attention import attention_rows
from edge_atp.pruning.schedule import Schedule, Stage
from edge_atp.runtime.in_llm.passed import PassedBlock
from edge_atp.runtime.outputs import Float, Prompt

# (layer, hidden (S, H), position_ids (S,), rows (R,)) -> queries (heads, R, d), keys (kv, S, d)
Probe = Callable[[int, Float, NDArray[np.int64], NDArray[np.int64]], tuple[Float, Float]]
# Told "prefill" when blocks have run and "prune" when a cut was decided.
OnLap = Callable[[str], object]


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

    @property
    def question_rows(self) -> NDArray[np.int64]:
        """Places of the text behind the first visual token; text before it cannot see it."""
        text = self.text_rows
        question: NDArray[np.int64] = text[text > self.visual_rows[0]]
        return question

    @property
    def last_row(self) -> NDArray[np.int64]:
        """(1,) place of the last prompt token."""
        return np.array([len(self.hidden) - 1])

    def attention(self, rows: NDArray[np.int64]) -> Float:
        """Causal softmax attention of ``rows`` over the sequence, visual columns: (heads, R, N)."""
        queries, keys = self.probe(self.layer, self.hidden, self.position_ids, rows)
        visible = np.arange(len(self.hidden))[None, :] <= rows[:, None]
        full: Float = attention_rows(queries, keys, visible=visible)
        return full[:, :, self.visual_rows]


@dataclass(frozen=True)
class Kept:
    """What one cut leaves of the visual tokens.

    indices: (K,) int64 ascending, into the visual tokens that entered.
    extra: (C, H) rows that take the last dropped places, behind the kept; at most as many as were
        dropped. None for none.
    """

    indices: NDArray[np.int64]
    extra: Float | None = None


class CutRule(ABC):
    """Runs one method on one prompt; made anew for each.

    Class attributes:
        position_policy: "original": tokens behind dropped ones keep their positions; "compact":
            they are numbered anew without gaps.
        takes_budget: whether the number of tokens left can be asked for.
    """

    position_policy: ClassVar[str] = "original"
    takes_budget: ClassVar[bool] = True

    def __init__(self, pruner: Any, prompt: Prompt, num_kept: int | None) -> None:
        """
        Args:
            num_kept: visual tokens of the whole prompt left in the end; None for the method's own
                ratios.
        Raises:
            ConfigError: the prompt lacks what the method scores by, or takes no budget.
        """
        self.pruner = pruner
        self.prompt = prompt
        self.schedule = self._plan(prompt, num_kept)

    def _plan(self, prompt: Prompt, num_kept: int | None) -> Schedule:
        schedule: Schedule = self.pruner.schedule(prompt.num_visual_tokens, num_kept)
        return schedule

    @property
    def follows(self) -> int:
        """Layers [0, this) that ``passed`` wants to see; 0 for none."""
        return 0

    def passed(self, block: PassedBlock) -> None:
        """A block of layers has run on the prompt."""

    @abstractmethod
    def choose(self, view: LayerView, stage: Stage) -> Kept:
        """Which visual tokens enter ``stage.layer``.

        Args:
            view: of that layer.
        """
