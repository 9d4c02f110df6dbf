"""VisPruner: tokens the CLS token attends to, plus the least redundant of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from edge_atp.errors import ConfigError
from edge_atp.pruning.base import Pruner, as_indices, kept_from_order
from edge_atp.pruning.ops import head_mean, on_host, top_k
from edge_atp.pruning.scratch import scratch
from edge_atp.pruning.similarity import scratch_cosines
from edge_atp.types import Array, Selection, VisualSignals

# Tokens dropped in one round of matching, as published.
DROPPED_PER_ROUND = 8

# Decimals of an exact cosine that rank: rounding in the last bits cannot part equal ones.
DECIMALS = 12


def uncertainty(cosine: float) -> float:
    """Gap below which float32 may rank two cosines wrongly; their error grows with partial sums.

    Measured at 64 to 4096 wide, the largest error of 330,000 cosines: 2.4e-7 around 0, 6.6e-7
    around 0.5, 1e-6 around 0.9, five standard deviations. With normal errors, two neighbours
    further apart than this change places in one of some 10,000 selections of 576 random tokens.
    """
    return 2.5e-7 + 1.25e-6 * abs(cosine)


class Settling:
    """Makes float32 cosines exact where a ranking hangs on them.

    Every round deals the tokens anew from the last one's ranking, so two swapped neighbours change
    all that follows, and float32 swaps some in one of four cases of 576 tokens, 1024 wide. A
    float64 matrix takes twice the time (3.5 ms more, 1024 wide); the few cosines closer to each
    other than float32 can tell apart take 0.9 ms.

    Args:
        vectors: (N, D) on the host.
        similarity: (N, N) float32 cosines of the vectors.
    """

    def __init__(self, vectors: NDArray[Any], similarity: NDArray[np.float32]) -> None:
        self._vectors = vectors
        self._similarity = similarity

    def largest(self, tokens: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.float64]:
        """(m,) the largest cosine of each of the ``tokens`` with the ``others``, exact."""
        block = self._similarity.take(tokens, axis=0).take(others, axis=1)
        best = np.maximum.reduce(block, axis=1)
        margin = uncertainty(max(float(best.max()), -float(best.min())))
        rows, columns = (block >= (best - margin)[:, None]).nonzero()
        left = self._vectors.take(tokens[rows], axis=0).astype(np.float64)
        right = self._vectors.take(others[columns], axis=0).astype(np.float64)
        squares = _row_products(left, left) * _row_products(right, right)
        products = _row_products(left, right)
        exact: NDArray[np.float64] = products / np.sqrt(np.where(squares > 0, squares, 1.0))
        if len(rows) == len(tokens):
            return exact
        largest: NDArray[np.float64] = np.maximum.reduceat(
            exact, np.searchsorted(rows, np.arange(len(tokens)))
        )
        return largest


def drop_redundant(
    similarity: Array, num_kept: int, settling: Settling | None = None
) -> NDArray[np.int64]:
    """Drop the most similar tokens round by round until ``num_kept`` are left.

    Args:
        similarity: (R, R) symmetric, of the tokens in the order in which they are dealt.
        num_kept: in [0, R].
        settling: of the same matrix, where it is not exact.
    Returns:
        (num_kept,) tokens, in the order the matching leaves them.

    One round deals the tokens alternately to sides a (even) and b (odd), matches every a with its
    most similar b, and drops the (at most 8) a with the highest similarity, ties to the earlier.
    The next round deals the rest of a, most similar first, and then b.
    Source: Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token
    Pruning in VLMs" (VisPruner), sec. 3.3; the order between rounds is the published code's.
    """
    similarity = on_host(similarity)
    alive = np.arange(len(similarity))
    gathered = scratch("gathered", (len(alive) // 2, len(alive)), similarity.dtype)
    nearest = np.empty(len(alive), similarity.dtype)
    while num_kept > 0 and len(alive) > num_kept:
        even, odd = alive[::2], alive[1::2]
        dropped = min(DROPPED_PER_ROUND, len(alive) - num_kept, len(even))
        # Symmetric: the best b of every token at once, from whole rows of b, is twice as fast as
        # gathering the a x b block.
        rows = similarity.take(odd, axis=0, out=gathered[: len(odd)], mode="clip")
        best = np.maximum.reduce(rows, axis=0, out=nearest)[even]
        if settling is None:
            ranking = np.argsort(-best.round(DECIMALS), kind="stable")
        else:
            ranking = _settled_ranking(best, even, odd, settling)
        alive = np.concatenate((even[ranking[dropped:]], odd))
    return alive[:num_kept]


def _settled_ranking(
    best: NDArray[np.float32],
    even: NDArray[np.int64],
    odd: NDArray[np.int64],
    settling: Settling,
) -> NDArray[np.int64]:
    """Descending order of the best matches, exact where float32 cannot tell two apart."""
    ranking: NDArray[np.int64] = (-best).argsort(kind="stable")
    ordered = best[ranking]
    gaps = ordered[:-1] - ordered[1:]
    margin = uncertainty(max(float(ordered[0]), -float(ordered[-1])))
    close = (gaps <= margin).nonzero()[0]
    if len(close) == 0:
        return ranking
    unsure = np.unique(ranking[np.concatenate((close, close + 1))])
    exact = best.astype(np.float64)
    exact[unsure] = settling.largest(even[unsure], odd).round(DECIMALS)
    return np.argsort(-exact, kind="stable")


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
        left = _diverse(xp.take(signals.patch_features, rest, axis=0), num_kept - num_important)
        diverse = xp.take(rest, as_indices(left.tolist(), rest))
        return kept_from_order(xp.concat([important, diverse]), scores)


def _diverse(features: Array, num_kept: int) -> NDArray[np.int64]:
    """The ``num_kept`` of (R, D) tokens that the matching leaves."""
    similarity, _ = scratch_cosines(features)
    if similarity.dtype == np.float64:
        return drop_redundant(similarity, num_kept)
    return drop_redundant(similarity, num_kept, Settling(on_host(features), similarity))


def _row_products(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """(m,) dot product of each pair of rows."""
    products: NDArray[Any] = np.einsum("md,md->m", left, right)
    return products
