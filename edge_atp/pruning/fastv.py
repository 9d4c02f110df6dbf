"""FastV: after a few LLM layers keep the visual tokens the last prompt token attends to.

Position ids: the kept tokens keep their original ones.
Source: Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", sec. 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edge_atp.errors import ConfigError
from edge_atp.pruning.base import InModelPruner, kept_from_order
from edge_atp.pruning.ops import best, head_mean
from edge_atp.pruning.schedule import Schedule, Stage
from edge_atp.types import Array, Selection


def keep_count(num_visual: int, drop_ratio: float) -> int:
    """round(N (1 - R)), halves to even as in the published Python code, at least 1."""
    return max(1, round(num_visual * (1.0 - drop_ratio)))


def rank(last_row: Array, num_kept: int) -> Selection:
    """Keep the visual tokens with the highest head-mean attention.

    Args:
        last_row: (heads, N) attention of the last prompt token in layer k - 1, visual columns of
            a softmax over the whole prompt.
        num_kept: K in [1, N].
    Raises:
        ShapeError: K is out of range, or the row is not finite.
    """
    scores = head_mean(last_row)
    return kept_from_order(best("last_row", scores, num_kept), scores)


@dataclass(frozen=True)
class Method(InModelPruner):
    """One cut.

    layer: k, the first layer with fewer tokens; scores come from layer k - 1.
    drop_ratio: R, share of the visual tokens dropped, [0, 1); read when no budget is given.
    """

    site: ClassVar[str] = "in_llm"

    layer: int = 2
    drop_ratio: float = 0.5

    def __post_init__(self) -> None:
        if self.layer < 1:
            raise ConfigError(f"layer is {self.layer}; it must be 1 or more (scores come from k-1)")
        if not 0.0 <= self.drop_ratio < 1.0:
            raise ConfigError(f"drop_ratio is {self.drop_ratio}; it must be in [0, 1)")

    def schedule(self, num_visual: int, num_kept: int | None = None) -> Schedule:
        """One stage at ``layer``."""
        kept = keep_count(num_visual, self.drop_ratio) if num_kept is None else num_kept
        return Schedule((Stage(self.layer, kept),))
