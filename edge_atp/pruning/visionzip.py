"""VisionZip: tokens the CLS token attends to, plus a few that summarise all the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace, device

from edge_atp.errors import ConfigError, MissingSignalError
from edge_atp.pruning.base import Pruner, as_indices
from edge_atp.pruning.ops import (
    CLOSE_COSINES,
    as_float32,
    head_mean,
    require_finite,
    top_k,
)
from edge_atp.pruning.similarity import cosine_cross
from edge_atp.types import Array, Selection, VisualSignals

# 54 + 10, 108 + 20 and 162 + 30 tokens in the published settings.
CONTEXTUAL_RATIO = 10 / 64


def contextual_targets(num_rest: int, num_contextual: int) -> list[int]:
    """Positions 0, s, 2s, ... among the R remaining tokens, s = max(1, floor(R / c))."""
    step = max(1, num_rest // num_contextual)
    return list(range(0, num_rest, step))[:num_contextual]


def merge_rest(features: Array, keys: Array, targets: Array, others: Array) -> Array:
    """Add to each target the mean of the other tokens that are most like it.

    Args:
        features: (N, D).
        keys: (N, Dk) attention keys; cosine between them decides.
        targets: (c,) indices that receive.
        others: (m,) indices that are given away, each to the target of highest cosine, ties to
            the lowest target.
    Returns:
        (c, D) float32, target + mean(assigned); the target itself where nothing is assigned.
    Source: Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language
    Models", alg. 1.
    """
    xp = array_namespace(features, keys)
    features = as_float32(features)
    received = xp.take(features, targets, axis=0)
    if others.shape[0] == 0:
        return received
    owner = most_similar(xp.take(keys, others, axis=0), xp.take(keys, targets, axis=0))
    slots = xp.arange(targets.shape[0], dtype=owner.dtype, device=device(targets))
    member = xp.astype(slots[:, None] == owner[None, :], xp.float32)  # (c, m)
    counts = xp.sum(member, axis=1)
    sums = member @ xp.take(features, others, axis=0)
    return received + sums / xp.where(counts > 0, counts, xp.ones_like(counts))[:, None]


def most_similar(rows: Array, columns: Array) -> Array:
    """(m,) index of the column vector of highest cosine for each row vector, ties to the lowest.

    Args:
        rows: (m, D).
        columns: (c, D).
    """
    xp = array_namespace(rows, columns)
    similarity = cosine_cross(rows, columns)
    owner = xp.argmax(similarity, axis=1)
    if columns.shape[0] > 1:
        index = xp.arange(columns.shape[0], dtype=owner.dtype, device=device(owner))
        others = xp.where(index == owner[:, None], xp.full_like(similarity, -2.0), similarity)
        lead = xp.max(similarity, axis=1) - xp.max(others, axis=1)
        close = xp.nonzero(lead < CLOSE_COSINES)[0]
        if close.shape[0]:
            doubtful = xp.take(rows, close, axis=0)
            owner[close] = xp.argmax(cosine_cross(doubtful, columns, exact=True), axis=1)
    return owner


@dataclass(frozen=True)
class Method(Pruner):
    """K = dominant tokens by CLS attention + contextual tokens that take up the rest.

    contextual_ratio: share of K that is contextual, [0, 1); rounded, at least one token from
        K = 2 on unless it is 0.
    keep_cls: count the CLS token as one of the dominant tokens and keep it, as published. It
        needs ``cls_feature``; ``merged`` then starts with the CLS token and ``kept_indices`` has
        K - 1 patches. Off by default: the language models served here were trained without it.

    ``merged`` is aligned with ``kept_indices``: a dominant token is unchanged, a contextual one is
    its target plus the mean of what it took up.
    """

    needs: ClassVar[tuple[str, ...]] = ("patch_features", "cls_attention", "patch_keys")
    reads: ClassVar[tuple[str, ...]] = ("cls_feature",)
    # The published code compares keys averaged over heads; a host reads this when it has a choice.
    mean_keys: ClassVar[bool] = True

    contextual_ratio: float = CONTEXTUAL_RATIO
    keep_cls: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.contextual_ratio < 1.0:
            raise ConfigError(f"contextual_ratio is {self.contextual_ratio}; it must be in [0, 1)")

    def _select(self, signals: VisualSignals, num_kept: int, /) -> Selection:
        scores = head_mean(signals.cls_attention)
        xp = array_namespace(scores)
        # K = N is the identity, and a budget of one token is a patch.
        with_cls = self.keep_cls and 1 < num_kept < scores.shape[0]
        budget = num_kept - 1 if with_cls else num_kept
        contextual = self._num_contextual(budget)
        ranking = top_k(scores, scores.shape[0])
        dominant = ranking[: budget - contextual]
        rest = xp.sort(ranking[budget - contextual :])
        merged = as_float32(signals.patch_features)
        order = dominant
        if contextual:
            places = contextual_targets(rest.shape[0], contextual)
            targets = xp.take(rest, as_indices(places, scores))
            left = as_indices(sorted(set(range(rest.shape[0])) - set(places)), scores)
            taken_up = merge_rest(merged, signals.patch_keys, targets, xp.take(rest, left))
            order = xp.concat([dominant, targets])
            merged = xp.concat([xp.take(merged, dominant, axis=0), taken_up], axis=0)
        else:
            merged = xp.take(merged, dominant, axis=0)
        raster = xp.argsort(order)
        merged = xp.take(merged, raster, axis=0)
        if with_cls:
            merged = xp.concat([as_float32(self._cls_feature(signals))[None, :], merged], axis=0)
        return Selection(xp.take(order, raster), scores, order, merged)

    def _num_contextual(self, budget: int) -> int:
        if self.contextual_ratio == 0.0 or budget < 2:
            return 0
        return min(max(1, round(self.contextual_ratio * budget)), budget - 1)

    def _cls_feature(self, signals: VisualSignals) -> Array:
        if signals.cls_feature is None:
            raise MissingSignalError(
                "visionzip with keep_cls needs cls_feature, which models with edge_atp.hf.attach"
                " expose where tokens are cut before the projector, and exported engines do not;"
                " set keep_cls to false"
            )
        require_finite("cls_feature", signals.cls_feature)
        return signals.cls_feature
