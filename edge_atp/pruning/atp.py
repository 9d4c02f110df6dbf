"""Adaptive Token Pruning: saliency of the patch blended with its relevance to the question.

S = alpha * N(relevance) + (1 - alpha) * N(saliency), N = min-max over the patches; keep the K
largest. No training.
Source: Li, Song, Hu, "Efficient Vision-Language Reasoning via Adaptive Token Pruning", sec. 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edge_atp.errors import ConfigError, MissingSignalError, ShapeError
from edge_atp.pruning.base import Pruner, kept_from_order
from edge_atp.pruning.ops import cosine, head_mean, min_max, top_k
from edge_atp.types import Array, Selection, VisualSignals

RELEVANCE_SOURCES = ("raw", "negated", "value")


def fuse(relevance: Array, saliency: Array, alpha: float) -> Array:
    """Blend query relevance with visual saliency into one importance score.

    Args:
        relevance: (N,) cosine of each patch with the question, any scale.
        saliency: (N,) CLS attention of each patch, any scale.
        alpha: weight of the question in [0, 1]; 0 ignores it, 1 ignores saliency.
    Returns:
        (N,) float32 in [0, 1]; higher is kept first.
    Raises:
        ShapeError: the two inputs differ in length.
    Source: ATP, sec. 4.5. A constant input normalises to zeros.
    """
    if relevance.shape != saliency.shape:
        raise ShapeError(
            f"relevance {tuple(relevance.shape)} and saliency {tuple(saliency.shape)} must have"
            " the same length, one score per patch"
        )
    return alpha * min_max(relevance) + (1.0 - alpha) * min_max(saliency)


@dataclass(frozen=True)
class Method(Pruner):
    """ATP.

    alpha: weight of relevance in [0, 1].
    relevance_source: "raw" (the paper: cosine of joint-space patch and text), "negated" (for CLIP
        towers whose plain patch-text cosine is inverted), "value" (``patch_embeds`` taken from
        the value path of the last layer; the encoder must expose those).
    """

    needs: ClassVar[tuple[str, ...]] = ("patch_embeds", "text_embed")

    alpha: float = 0.5
    relevance_source: str = "raw"

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ConfigError(f"alpha is {self.alpha}; it must be in [0, 1]")
        if self.relevance_source not in RELEVANCE_SOURCES:
            raise ConfigError(
                f"relevance_source is {self.relevance_source!r}; choose one of"
                f" {', '.join(RELEVANCE_SOURCES)}"
            )

    def _select(self, signals: VisualSignals, num_kept: int) -> Selection:
        relevance = cosine(signals.patch_embeds, signals.text_embed)
        if self.relevance_source == "negated":
            relevance = -relevance
        scores = fuse(relevance, saliency(signals), self.alpha)
        return kept_from_order(top_k(scores, num_kept), scores)


def saliency(signals: VisualSignals) -> Array:
    """(N,) head-mean CLS attention, or received attention where the encoder has no CLS token.

    Raises:
        MissingSignalError: the encoder exposes neither.
    """
    if signals.cls_attention is not None:
        return head_mean(signals.cls_attention)
    if signals.received_attention is not None:
        return head_mean(signals.received_attention)
    raise MissingSignalError(
        "atp needs cls_attention, or received_attention for an encoder without a CLS token;"
        " export the vision graph with one of these outputs"
    )
