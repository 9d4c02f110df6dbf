"""SparseVLM: visual tokens rated by the visually relevant words, dropped ones partly recycled.

Raters are chosen once, before the first LLM layer. At each scheduled layer the raters' attention
scores the visual tokens; the rank of that attention says how many are redundant, and the best of
the dropped ones are clustered and come back as a few tokens.
Source: Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model
Inference", sec. 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace, device

from edge_atp.errors import ConfigError, ShapeError
from edge_atp.pruning.base import InModelPruner, kept_from_order
from edge_atp.pruning.ops import as_float32, best, mean_over, snap, softmax, top_k
from edge_atp.pruning.schedule import Schedule, constant_ratio, from_ratios
from edge_atp.pruning.similarity import lowest_twin
from edge_atp.types import Array, Selection

# Rounding of a mean of float64 softmax rows, far above: it must not put a token above the mean.
ROUNDING = 1e-12


def raters(visual: Array, text: Array) -> Array:
    """Text tokens that rate the visual ones.

    Args:
        visual: (N, H) visual tokens as they enter the LLM.
        text: (T, H) text tokens as they enter the LLM.
    Returns:
        (T',) int64 ascending: tokens whose mean softmax(V T^T), softmax over the text, is above
        the mean over the text. All tokens where none is (one token, or constant similarity).
    """
    if visual.shape[1] != text.shape[1]:
        raise ShapeError(f"visual is {visual.shape[1]} wide and text {text.shape[1]}")
    xp = array_namespace(visual, text)
    logits = xp.astype(visual, xp.float64) @ xp.astype(text, xp.float64).T
    relevance = mean_over(softmax(logits), 0)
    above = xp.nonzero(relevance > xp.mean(relevance) * (1.0 + ROUNDING))[0]
    if above.shape[0] == 0:
        above = xp.arange(text.shape[0], device=device(text))
    return xp.astype(above, xp.int64)


def rank(rater_rows: Array, num_kept: int) -> Selection:
    """Keep the visual tokens with the highest attention, averaged over heads and raters.

    Args:
        rater_rows: (heads, T', N) attention of the raters to the visual tokens.
        num_kept: K in [1, N].
    Raises:
        ShapeError: K is out of range, or the rows are not finite.
    """
    scores = as_float32(mean_over(rater_rows, (0, 1)))
    return kept_from_order(best("rater_rows", scores, num_kept), scores)


def keep_count(rater_rows: Array, scale: float = 1.0, minimum: int = 1) -> int:
    """Rank rule: N - floor(scale * (N - rank(P))), P the (T', N) head-mean attention.

    Args:
        rater_rows: (heads, T', N).
        scale: lambda, share of the redundant tokens that goes.
        minimum: tokens kept in any case.
    """
    xp = array_namespace(rater_rows)
    # The rank of the attention as it was computed, in float32: the tolerance follows the dtype.
    matrix = as_float32(mean_over(rater_rows, 0))
    num = matrix.shape[1]
    redundant = num - int(xp.linalg.matrix_rank(matrix))
    return int(min(num, max(minimum, num - math.floor(scale * redundant))))


def recycle(
    tokens: Array, scores: Array, share: float = 0.3, tokens_per_cluster: int = 10
) -> Array:
    """Give back the best dropped tokens, condensed.

    Args:
        tokens: (R, H) dropped visual tokens.
        scores: (R,) their ratings.
        share: of the R tokens that are recycled, the best rated; one more is always taken.
        tokens_per_cluster: n recycled tokens become floor(n / this) + 1 tokens.
    Returns:
        (C, H) in the dtype of ``tokens``; (0, H) where nothing was dropped.
    """
    xp = array_namespace(tokens)
    num = tokens.shape[0]
    if num == 0:
        return tokens
    recycled, clusters = recycle_counts(num, share, tokens_per_cluster)
    chosen = xp.take(tokens, xp.sort(top_k(scores, recycled)), axis=0)
    return merge_clusters(chosen, clusters)


def recycle_counts(
    num_dropped: int, share: float = 0.3, tokens_per_cluster: int = 10
) -> tuple[int, int]:
    """How many of the dropped tokens are recycled, and how many tokens they become."""
    recycled = min(num_dropped, int(num_dropped * share) + 1)
    return recycled, min(recycled, recycled // tokens_per_cluster + 1)


def merge_clusters(tokens: Array, num_clusters: int) -> Array:
    """Density-peak clustering (k nearest neighbours, k = number of clusters), mean of a cluster.

    Args:
        tokens: (n, H).
        num_clusters: C in [1, n].
    Returns:
        (C, H) in the dtype of ``tokens``, clusters in the order of their centres. Density is
        exp(-mean squared distance); of equal ones the lower index counts as denser (the published
        code adds noise instead).
    Source: Rodriguez and Laio, "Clustering by Fast Search and Find of Density Peaks"; distances
    are divided by sqrt(H). The paper's text sums a cluster, its code averages; this averages,
    which keeps the token's scale.
    """
    xp = array_namespace(tokens)
    values = xp.astype(tokens, xp.float64)
    num = values.shape[0]
    where = device(values)
    squared = _squared_distances(values) / values.shape[1]
    index = xp.arange(num, dtype=xp.int64, device=where)
    spread = snap(xp.mean(xp.sort(squared, axis=1)[:, :num_clusters], axis=1))
    denser = spread[None, :] < spread[:, None]
    denser = denser | ((spread[None, :] == spread[:, None]) & (index[None, :] < index[:, None]))
    distance = xp.sqrt(squared)
    farthest = xp.full_like(distance, float(xp.max(distance)))
    to_denser = xp.min(xp.where(denser, distance, farthest), axis=1)
    centres = xp.sort(top_k(_log_peak(to_denser, spread), num_clusters))
    owner = xp.argmin(xp.take(distance, centres, axis=1), axis=1)
    is_centre = centres[:, None] == index[None, :]  # a centre is its own, even beside a twin
    slots = xp.arange(num_clusters, dtype=owner.dtype, device=where)
    member = is_centre | ((slots[:, None] == owner[None, :]) & ~xp.any(is_centre, axis=0)[None, :])
    weights = xp.astype(member, xp.float64)
    means = weights @ values / xp.sum(weights, axis=1)[:, None]
    return xp.astype(means, tokens.dtype)


def _log_peak(to_denser: Array, spread: Array) -> Array:
    """(n,) log of distance times density, which for far tokens is below what a float holds."""
    xp = array_namespace(to_denser)
    apart = to_denser > 0
    peak = snap(xp.log(xp.where(apart, to_denser, xp.ones_like(to_denser))) - spread)
    return xp.where(apart, peak, xp.full_like(peak, float("-inf")))


def _squared_distances(vectors: Array) -> Array:
    """(n, n) float64 squared distances of (n, H) float64 vectors; equal vectors have equal rows."""
    xp = array_namespace(vectors)
    # Centred: the difference of two long vectors' products would lose the digits of a short one.
    vectors = vectors - xp.mean(vectors, axis=0)[None, :]
    products = vectors @ vectors.T
    twins = lowest_twin(vectors)
    if twins is not None:
        products = xp.take(xp.take(products, twins, axis=0), twins, axis=1)
    squares = xp.linalg.diagonal(products)
    squared = snap(squares[:, None] + squares[None, :] - 2.0 * products)
    return xp.where(squared < 0, xp.zeros_like(squared), squared)


@dataclass(frozen=True)
class Method(InModelPruner):
    """Staged dropping with recycling.

    layers: layers that fewer tokens enter.
    ratios: share of the original visual tokens kept at each (published: 300, 200, 110 of 576,
        which averages 192 tokens); the recycled tokens come on top.
    adaptive: take the count from the rank rule instead; the schedule's count is then the minimum.
    rank_scale: lambda of the rank rule.
    recycle_share: share of the dropped tokens that is recycled; 0 recycles none.
    """

    site: ClassVar[str] = "in_llm"

    layers: tuple[int, ...] = (2, 6, 15)
    ratios: tuple[float, ...] = (300 / 576, 200 / 576, 110 / 576)
    adaptive: bool = False
    rank_scale: float = 1.0
    recycle_share: float = 0.3

    def __post_init__(self) -> None:
        for name in ("rank_scale", "recycle_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be in [0, 1]")
        if len(self.layers) != len(self.ratios):
            raise ConfigError(f"layers {self.layers} and ratios {self.ratios} differ in length")

    def schedule(self, num_visual: int, num_kept: int | None = None) -> Schedule:
        """The ratios' counts; with a budget, constant-ratio cuts down to it."""
        if num_kept is None:
            return from_ratios(self.layers, self.ratios, num_visual)
        return constant_ratio(self.layers, num_visual, num_kept)

    def added(self, num_dropped: int) -> int:
        """Recycled tokens of one stage."""
        return recycle_counts(num_dropped, self.recycle_share)[1] if self.recycle_share else 0

    def scored_rows(self, num_visual: int, num_text: int) -> int:
        """At most all text tokens rate."""
        del num_visual
        return num_text
