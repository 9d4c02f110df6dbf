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
from edge_atp.pruning.similarity import matrix_work, scratch_cosines
from edge_atp.types import Array, Selection, VisualSignals

# Tokens dropped in one round of matching, as published.
DROPPED_PER_ROUND = 8

# Multiply-adds up to which a float64 matrix costs less than settling a float32 one (576 tokens, 404
# wide).
DOUBLE_WORK = 1 << 26


def uncertainty(cosine: NDArray[Any]) -> NDArray[Any]:
    """Bound on the error of a float32 cosine, which grows with its partial sums.

    Measured at 64 to 4096 wide: at most 2e-7 around 0, 6e-7 around 0.5, 1.05e-6 around 0.9.
    """
    bound: NDArray[Any] = 2.5e-7 + 1.25e-6 * np.abs(cosine)
    return bound


class Settling:
    """Makes float32 cosines exact where a ranking hangs on them.

    Every round deals the tokens anew from the last one's ranking, so two swapped neighbours change
    all that follows, and float32 swaps some in one of four cases of 576 tokens, 1024 wide. A
    float64 matrix takes twice the time; the few cosines closer to each other than float32 can
    tell apart take a hundredth of it.

    Args:
        vectors: (N, D) on the host.
        similarity: (N, N) float32 cosines of the vectors, corrected in place.
    """

    def __init__(self, vectors: NDArray[Any], similarity: NDArray[np.float32]) -> None:
        self._vectors = vectors
        self._similarity = similarity
        self._settled = np.eye(len(similarity), dtype=bool)

    def settle(self, tokens: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[Any] | None:
        """Make the largest similarities of ``tokens`` to ``others`` exact.

        Returns:
            (m,) the largest similarity of each token; None where they were exact before.
        """
        block = self._similarity[tokens[:, None], others]
        best = block.max(axis=1, keepdims=True)
        rows, columns = np.nonzero(block >= best - uncertainty(best))
        first, second = tokens[rows], others[columns]
        new = ~self._settled[first, second]
        if not new.any():
            return None
        low, high = np.minimum(first, second)[new], np.maximum(first, second)[new]
        # Lower index first, so that a pair has one value whoever asks.
        left = self._vectors[low].astype(np.float64)
        right = self._vectors[high].astype(np.float64)
        squares = _row_products(left, left) * _row_products(right, right)
        exact = _row_products(left, right) / np.sqrt(np.where(squares > 0, squares, 1.0))
        self._similarity[low, high] = self._similarity[high, low] = exact
        self._settled[low, high] = self._settled[high, low] = True
        largest: NDArray[Any] = self._similarity[tokens[:, None], others].max(axis=1)
        return largest


def drop_redundant(
    similarity: Array,
    num_kept: int,
    tokens: NDArray[np.int64] | None = None,
    settling: Settling | None = None,
) -> NDArray[np.int64]:
    """Drop the most similar tokens round by round until ``num_kept`` are left.

    Args:
        similarity: (N, N) symmetric.
        num_kept: in [0, R].
        tokens: (R,) tokens in the order in which they are dealt to the two sides; None for all.
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
    alive = np.arange(len(similarity)) if tokens is None else tokens
    while num_kept > 0 and len(alive) > num_kept:
        even, odd = alive[::2], alive[1::2]
        dropped = min(DROPPED_PER_ROUND, len(alive) - num_kept, len(even))
        # Symmetric: the best b of every token at once, from whole rows of b, is twice as fast as
        # gathering the a x b block.
        rows = scratch("gathered", (len(odd), similarity.shape[1]), similarity.dtype)
        best = np.take(similarity, odd, axis=0, out=rows, mode="clip").max(axis=0)[even]
        ranking = np.argsort(-best, kind="stable")
        if settling is not None:
            unsure = ranking[_close(best[ranking])]
            if len(unsure) and (exact := settling.settle(even[unsure], odd)) is not None:
                best[unsure] = exact
                ranking = np.argsort(-best, kind="stable")
        alive = np.concatenate((even[ranking[dropped:]], odd))
    return alive[:num_kept]


def _close(descending: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of the values have a neighbour that float32 cannot tell from them."""
    gap = descending[:-1] - descending[1:] < 2 * uncertainty(descending[:-1])
    close = np.zeros(len(descending), dtype=bool)
    close[:-1] = gap
    close[1:] |= gap
    return close


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
        diverse = _diverse(signals.patch_features, on_host(rest), num_kept - num_important)
        return kept_from_order(xp.concat([important, as_indices(diverse.tolist(), scores)]), scores)


def _diverse(features: Array, tokens: NDArray[np.int64], num_kept: int) -> NDArray[np.int64]:
    """The ``num_kept`` of the (R,) tokens that the matching leaves; features (N, D)."""
    double = np.float64 if matrix_work(*features.shape) <= DOUBLE_WORK else None
    similarity, _ = scratch_cosines(features, dtype=double)
    if similarity.dtype == np.float64:
        # Rounded, so that rounding in the last bits of equal cosines cannot rank them.
        rounded = scratch("rounded", similarity.shape, np.float32)
        rounded[:] = similarity
        return drop_redundant(rounded, num_kept, tokens)
    return drop_redundant(similarity, num_kept, tokens, Settling(on_host(features), similarity))


def _row_products(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """(m,) dot product of each pair of rows."""
    products: NDArray[Any] = np.einsum("md,md->m", left, right)
    return products
