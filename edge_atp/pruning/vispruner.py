"""VisPruner: tokens the CLS token attends to, plus the least redundant of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace, device

from edge_atp.errors import ConfigError
from edge_atp.pruning.base import Pruner, kept_from_order
from edge_atp.pruning.ops import as_float32, head_mean, top_k
from edge_atp.pruning.similarity import cosine_matrix
from edge_atp.types import Array, Selection, VisualSignals

# Tokens dropped in one round of matching, as published.
DROPPED_PER_ROUND = 8


def drop_redundant(similarity: Array, num_kept: int) -> Array:
    """Drop the most similar tokens round by round until ``num_kept`` are left.

    Args:
        similarity: (R, R) symmetric, in the order in which tokens are dealt to the two sides.
        num_kept: in [0, R].
    Returns:
        (num_kept,) int64 positions, in the order the matching leaves them.

    One round deals the tokens alternately to sides a (even) and b (odd), matches every a with its
    most similar b, and drops the (at most 8) a with the highest similarity, ties to the earlier.
    The next round deals the rest of a, most similar first, and then b.
    Source: Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token
    Pruning in VLMs" (VisPruner), sec. 3.3; the order between rounds is the published code's.
    """
    xp = array_namespace(similarity)
    alive = xp.arange(similarity.shape[0], dtype=xp.int64, device=device(similarity))
    while num_kept > 0 and alive.shape[0] > num_kept:
        even, odd = alive[::2], alive[1::2]
        dropped = min(DROPPED_PER_ROUND, alive.shape[0] - num_kept, even.shape[0])
        # Symmetric: the best b of every token at once, from whole rows of b, is twice as fast as
        # gathering the a x b block.
        best = xp.take(xp.max(xp.take(similarity, odd, axis=0), axis=0), even)
        ranking = top_k(best, even.shape[0])
        alive = xp.concat([xp.take(even, ranking[dropped:]), odd])
    return alive[:num_kept]


@dataclass(frozen=True)
class Method(Pruner):
    """``important_ratio`` of K by head-mean CLS attention (rounded down), the rest by diversity.

    The tokens that are not important enter the matching in descending order of attention.
    Similarity is the cosine of the patch features. ``scores`` is the attention.
    """

    needs: ClassVar[tuple[str, ...]] = ("patch_features", "cls_attention")

    important_ratio: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.important_ratio <= 1.0:
            raise ConfigError(f"important_ratio is {self.important_ratio}; it must be in [0, 1]")

    def _select(self, signals: VisualSignals, num_kept: int, /) -> Selection:
        scores = head_mean(signals.cls_attention)
        xp = array_namespace(scores)
        num_important = int(self.important_ratio * num_kept)
        ranking = top_k(scores, scores.shape[0])
        important, rest = ranking[:num_important], ranking[num_important:]
        features = xp.take(signals.patch_features, rest, axis=0)
        # Every round deals the tokens anew from the last one's ranking, so two swapped neighbours
        # change all that follows. In float32, NumPy and torch kept different sets in one of four
        # random cases (N = 576, D = 1024); float64 rounded to float32 settles the ranking.
        similarity = as_float32(cosine_matrix(xp.astype(features, xp.float64)))
        diverse = xp.take(rest, drop_redundant(similarity, num_kept - num_important))
        return kept_from_order(xp.concat([important, diverse]), scores)
