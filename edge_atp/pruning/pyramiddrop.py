"""PyramidDrop: drop visual tokens in stages, by the attention of the last prompt token.

At each scheduled layer the row is computed from that layer's own query of the last prompt token
and its keys, before the layer runs, so no layer has to return attention. Position ids: each
stage numbers the shorter sequence anew, as published.
Source: Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid
Visual Redundancy Reduction", sec. 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edge_atp.errors import ConfigError
from edge_atp.pruning.base import InModelPruner, kept_from_order
from edge_atp.pruning.ops import best, head_mean
from edge_atp.pruning.schedule import Schedule, Stage, from_ratios
from edge_atp.types import Array, Selection


def keep_counts(num_visual: int, ratios: tuple[float, ...]) -> tuple[int, ...]:
    """floor(ratio * N) for each stage; ratios are of the original N."""
    return from_ratios(range(len(ratios)), ratios, num_visual).counts


def rank(last_row: Array, num_kept: int) -> Selection:
    """Keep the visual tokens with the highest head-mean attention.

    Args:
        last_row: (heads, N) attention of the last prompt token over the visual tokens still
            there, visual columns of a softmax over the whole sequence.
        num_kept: in [1, N].
    Raises:
        ShapeError: K is out of range, or the row is not finite.
    """
    scores = head_mean(last_row)
    return kept_from_order(best("last_row", scores, num_kept), scores)


@dataclass(frozen=True)
class Method(InModelPruner):
    """Staged dropping.

    layers: layers that fewer tokens enter.
    ratios: share of the original visual tokens left from each of them on.
    """

    site: ClassVar[str] = "in_llm"

    layers: tuple[int, ...] = (8, 16, 24)
    ratios: tuple[float, ...] = (0.5, 0.25, 0.125)

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.ratios):
            raise ConfigError(f"layers {self.layers} and ratios {self.ratios} differ in length")

    def schedule(self, num_visual: int, num_kept: int | None = None) -> Schedule:
        """One stage a layer; with a budget the counts scale with it.

        ``num_kept`` is the *last* stage's count; the stages before keep the ratios' proportions.
        """
        if num_kept is None:
            return from_ratios(self.layers, self.ratios, num_visual)
        scale = num_kept / (self.ratios[-1] * num_visual)
        counts = [min(num_visual, round(ratio * num_visual * scale)) for ratio in self.ratios]
        counts = [max(num_kept, count) for count in counts[:-1]] + [num_kept]
        return Schedule(tuple(map(Stage, self.layers, counts)))
