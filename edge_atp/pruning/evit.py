"""EViT: inside the ViT keep the patches the CLS token attends to and fuse the rest into one token.

The hook in ``edge_atp.hf`` calls ``split`` on the CLS row of a scheduled layer and appends
``fuse`` behind the kept patches; the fused token takes part in later layers like a patch.
Source: Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token
Reorganizations", sec. 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace

from edge_atp.errors import ConfigError
from edge_atp.pruning.base import InModelPruner
from edge_atp.pruning.ops import as_float32, best, head_mean, require_in_range
from edge_atp.pruning.schedule import Schedule, Stage, constant_ratio
from edge_atp.types import Array


@dataclass(frozen=True)
class Split:
    """Patches of one layer.

    kept: (K,) int64 ascending.
    dropped: (N - K,) int64 ascending.
    scores: (N,) float32 head-mean CLS attention.
    """

    kept: Array
    dropped: Array
    scores: Array


def keep_count(num_patches: int, rate: float) -> int:
    """ceil(rate * N); CLS is not counted."""
    # 1e-9: 0.7 * 10 must give 7, not ceil(7.000000000000001).
    return max(1, math.ceil(rate * num_patches - 1e-9))


def split(cls_attention: Array, num_kept: int) -> Split:
    """Keep the ``num_kept`` patches with the highest head-mean CLS attention.

    Args:
        cls_attention: (heads, N) or (N,), without the CLS column.
        num_kept: K in [1, N].
    Raises:
        ShapeError: K is out of range, or the attention is not finite.
    """
    scores = head_mean(cls_attention)
    xp = array_namespace(scores)
    require_in_range(num_kept, scores.shape[0])
    ranking = best("cls_attention", scores, scores.shape[0])
    return Split(xp.sort(ranking[:num_kept]), xp.sort(ranking[num_kept:]), scores)


def fuse(tokens: Array, scores: Array, dropped: Array) -> Array:
    """Attention-weighted sum of the dropped tokens; the weights are not normalised, as published.

    Args:
        tokens: (N, D).
        scores: (N,) CLS attention.
        dropped: (R,) indices.
    Returns:
        (D,) in the dtype of ``tokens``.
    """
    xp = array_namespace(tokens)
    weights = as_float32(xp.take(scores, dropped))
    fused = weights @ as_float32(xp.take(tokens, dropped, axis=0))
    return xp.astype(fused, tokens.dtype)


@dataclass(frozen=True)
class Method(InModelPruner):
    """EViT at a few layers.

    layers: ViT layers whose MLP already sees fewer tokens (the cut is between attention and MLP).
    rate: share of the patches kept at each of them, the fused token counted from the second on.
    """

    site: ClassVar[str] = "in_encoder"

    layers: tuple[int, ...] = (5, 11, 17)
    rate: float = 0.7

    def __post_init__(self) -> None:
        if not 0.0 < self.rate <= 1.0:
            raise ConfigError(f"rate is {self.rate}; it must be in (0, 1]")

    def schedule(self, num_visual: int, num_kept: int | None = None) -> Schedule:
        """Kept patches (without the fused token) at each layer."""
        if num_kept is not None:
            return constant_ratio(self.layers, num_visual, num_kept)
        stages, current = [], num_visual
        for layer in self.layers:
            kept = keep_count(current, self.rate)
            stages.append(Stage(layer, kept))
            current = kept + self.added(current - kept)
        return Schedule(tuple(stages))

    def added(self, num_dropped: int) -> int:
        """What is dropped in one layer becomes one token."""
        return min(1, num_dropped)
