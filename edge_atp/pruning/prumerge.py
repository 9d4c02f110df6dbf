"""PruMerge and PruMerge+: keep attended tokens and let each take up its nearest neighbours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace, device

from edge_atp.errors import ConfigError
from edge_atp.pruning.base import Pruner, as_indices
from edge_atp.pruning.ops import CLOSE_COSINES, as_float32, head_mean, top_k
from edge_atp.pruning.similarity import cosine_cross
from edge_atp.types import Array, Selection, VisualSignals

# Relative rounding of float32 attention and of the quartiles taken of it.
ROUNDING = 1e-6


def num_outliers(attention: Array) -> int:
    """How many of (N,) values lie above Q3 + 1.5 (Q3 - Q1), quartiles linearly interpolated.

    A value must be above the limit by more than float32's rounding: one that equals it is no
    outlier, whatever the last bits of its head mean.
    Source: Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal
    Models", sec. 3.2.
    """
    xp = array_namespace(attention)
    ordered = xp.sort(xp.astype(attention, xp.float64))

    def quantile(share: float) -> float:
        place = share * (ordered.shape[0] - 1)
        low = math.floor(place)
        high = min(low + 1, ordered.shape[0] - 1)
        return float(ordered[low] + (ordered[high] - ordered[low]) * (place - low))

    upper, lower = quantile(0.75), quantile(0.25)
    limit = upper + 1.5 * (upper - lower)
    return int(xp.sum(xp.astype(ordered > limit + ROUNDING * abs(limit), xp.int64)))


def adaptive_grid(num_patches: int, num_attended: int) -> list[int]:
    """The grid PruMerge+ adds: every s-th patch, s = floor(floor(N / attended) / 3), at least 1."""
    return list(range(0, num_patches - 1, max(1, num_patches // num_attended // 3)))


def take_up(features: Array, keys: Array, weights: Array, kept: Array, neighbours: int) -> Array:
    """Add to each kept token the weighted sum of its nearest other tokens.

    Args:
        features: (N, D).
        keys: (N, Dk); nearest means highest key cosine, ties to the lowest index.
        weights: (N,) CLS attention.
        kept: (K,) indices.
        neighbours: at most N - 1 others are used. Kept tokens can be neighbours too.
    Returns:
        (K, D) float32, x_i + sum_j a_j x_j; the weights are not normalised, as published.
    """
    xp = array_namespace(features, keys)
    neighbours = min(neighbours, features.shape[0] - 1)
    features = as_float32(features)
    if neighbours == 0:
        return xp.take(features, kept, axis=0)
    similarity = _to_others(keys, kept)
    last, following = _boundary(similarity, neighbours)
    close = xp.nonzero(last - following < CLOSE_COSINES)[0]
    if close.shape[0]:
        exact = _to_others(keys, xp.take(kept, close), exact=True)
        similarity[close], last[close] = exact, _boundary(exact, neighbours)[0]
    nearest = largest_per_row(similarity, neighbours, last)
    # A (K, N) weight matrix and one product, instead of gathering (K, 32, D).
    mix = xp.where(nearest, weights[None, :], xp.zeros_like(weights)[None, :])
    return xp.take(features, kept, axis=0) + mix @ features


def _to_others(keys: Array, kept: Array, exact: bool = False) -> Array:
    """(K, N) cosine of the keys of ``kept`` with all keys, -inf with themselves."""
    xp = array_namespace(keys)
    index = xp.arange(keys.shape[0], dtype=kept.dtype, device=device(kept))
    similarity = cosine_cross(xp.take(keys, kept, axis=0), keys, exact)
    itself = kept[:, None] == index[None, :]
    return xp.where(itself, xp.full_like(similarity, float("-inf")), similarity)


def _boundary(values: Array, count: int) -> tuple[Array, Array]:
    """(K,) the count-th largest value of each row, and the one after it; N > count > 0."""
    place = values.shape[1] - count
    if isinstance(values, np.ndarray):
        ordered = np.partition(values, (place - 1, place), axis=1)
    else:
        ordered = array_namespace(values).sort(values, axis=1)
    return ordered[:, place], ordered[:, place - 1]


def largest_per_row(values: Array, count: int, last: Array) -> Array:
    """(K, N) bool: the ``count`` largest values of each row, ties to the lowest index.

    Args:
        last: (K,) the smallest of those.
    """
    xp = array_namespace(values)
    last = last[:, None]
    largest = values >= last
    if int(xp.count_nonzero(largest)) == count * values.shape[0]:
        return largest
    above, equal = values > last, values == last
    room = count - xp.sum(xp.astype(above, xp.int64), axis=1)[:, None]
    return above | (equal & (xp.cumulative_sum(xp.astype(equal, xp.int64), axis=1) <= room))


@dataclass(frozen=True)
class Method(Pruner):
    """PruMerge on a fixed budget of K tokens, or with its own adaptive count up to K.

    adaptive: the number of attended tokens is that of the attention's outliers (at least 1, at
        most K) instead of K.
    plus: add a regular grid of patches. With ``adaptive`` the published grid, cut off at K;
        otherwise half of K is attended (rounded up) and the rest is a grid of K // 2 patches,
        where a patch that is attended already gives its place to the next best.
    neighbours: other tokens each kept token takes up.
    fuse_rest: append one token, the attention-weighted sum of all dropped ones.

    ``merged`` holds the kept tokens in the order of ``kept_indices``, then the fused one: K + 1
    rows. K = N changes nothing. ``scores`` is the head-mean CLS attention.
    """

    needs: ClassVar[tuple[str, ...]] = ("patch_features", "cls_attention", "patch_keys")
    # Keys and CLS row of the encoder's last layer; a host reads this when it has a choice.
    attention_layer: ClassVar[int] = -1

    adaptive: bool = False
    plus: bool = False
    neighbours: int = 32
    fuse_rest: bool = True

    def __post_init__(self) -> None:
        if self.neighbours < 0:
            raise ConfigError(f"neighbours is {self.neighbours}; it must be 0 or more")

    def added(self, num_dropped: int) -> int:
        """The fused token comes on top of K."""
        return int(self.fuse_rest and num_dropped > 0)

    def _select(self, signals: VisualSignals, num_kept: int, /) -> Selection:
        weights = head_mean(signals.cls_attention)
        xp = array_namespace(weights)
        features = as_float32(signals.patch_features)
        order = self._order(weights, num_kept)
        kept = xp.sort(order)
        if num_kept == weights.shape[0]:
            return Selection(kept, weights, order, xp.take(features, kept, axis=0))
        merged = take_up(features, signals.patch_keys, weights, kept, self.neighbours)
        if self.fuse_rest:
            rest = _zeroed_at(kept, weights)[None, :] @ features
            merged = xp.concat([merged, rest], axis=0)
        return Selection(kept, weights, order, merged)

    def _order(self, weights: Array, num_kept: int) -> Array:
        num = weights.shape[0]
        if num_kept == num:
            return top_k(weights, num)
        attended = num_kept
        if self.adaptive:
            attended = min(max(1, num_outliers(weights)), num_kept)
        elif self.plus:
            attended = num_kept - num_kept // 2
        ranking = [int(i) for i in top_k(weights, num)]
        chosen = ranking[:attended]
        if self.plus and self.adaptive:
            chosen += [i for i in adaptive_grid(num, attended) if i not in set(chosen)]
        elif self.plus:
            size = num_kept // 2
            grid = [(2 * i + 1) * num // (2 * size) for i in range(size)]
            chosen += [i for i in grid if i not in set(chosen)]
            chosen += [i for i in ranking if i not in set(chosen)][: num_kept - len(chosen)]
        return as_indices(chosen[:num_kept], weights)


def _zeroed_at(kept: Array, weights: Array) -> Array:
    """The (N,) weights, 0 at the kept indices."""
    xp = array_namespace(weights)
    index = xp.arange(weights.shape[0], dtype=kept.dtype, device=device(kept))
    return xp.where(xp.any(kept[:, None] == index, axis=0), xp.zeros_like(weights), weights)
