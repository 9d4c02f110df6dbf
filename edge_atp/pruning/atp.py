"""Adaptive Token Pruning: saliency of the patch blended with its relevance to the question.

S = alpha * N(relevance) + (1 - alpha) * N(saliency), N = min-max over the patches; keep the K
largest. No training.
Source: Li, Song, Hu, "Efficient Vision-Language Reasoning via Adaptive Token Pruning", sec. 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edge_atp.errors import ConfigError, ShapeError
from edge_atp.pruning.base import Pruner, kept_from_order
from edge_atp.pruning.ops import as_float32, cosine, head_mean, min_max, namespace, snap, top_k
from edge_atp.types import Array, Selection, VisualSignals

RELEVANCE_SOURCES = ("raw", "negated", "value")
# Where saliency may come from, in order of preference.
SALIENCY_SIGNALS = {
    "auto": ("cls_attention", "received_attention"),
    "cls": ("cls_attention",),
    "received": ("received_attention",),
}


def fuse(relevance: Array, saliency: Array, alpha: float) -> Array:
    """Blend query relevance with visual saliency into one importance score.

    Args:
        relevance: (N,) cosine of each patch with the question, any scale.
        saliency: (N,) CLS attention of each patch, any scale.
        alpha: weight of the question in [0, 1]; 0 ignores it, 1 ignores saliency.
    Returns:
        (N,) in [0, 1], in the finer precision of the two; higher is kept first.
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
        towers whose plain patch-text cosine is inverted: background scores higher), "value"
        (``patch_embeds`` taken from the value path of the last layer, as in MaskCLIP; the cosine
        is the same, the encoder must expose those patches).
    saliency_source: "cls" (attention of the CLS token), "received" (mean attention each patch
        receives, for encoders without CLS), "auto" (cls where the encoder exposes it).

    The paper's saliency formula sums a softmax row, which is 1 for every patch; its text says CLS
    attention, which is what this computes.
    """

    needs: ClassVar[tuple[str, ...]] = ("patch_embeds", "text_embed")
    checks_itself: ClassVar[tuple[str, ...]] = ("patch_embeds", "text_embed")

    alpha: float = 0.5
    relevance_source: str = "raw"
    saliency_source: str = "auto"

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ConfigError(f"alpha is {self.alpha}; it must be in [0, 1]")
        _require_choice("relevance_source", self.relevance_source, RELEVANCE_SOURCES)
        _require_choice("saliency_source", self.saliency_source, tuple(SALIENCY_SIGNALS))

    @property
    def needs_one_of(self) -> tuple[tuple[str, ...], ...]:
        """The attention row that ``saliency_source`` names."""
        return (SALIENCY_SIGNALS[self.saliency_source],)

    def _select(self, signals: VisualSignals, num_kept: int, /) -> Selection:
        relevance = cosine(signals.patch_embeds, signals.text_embed)
        if self.relevance_source == "negated":
            relevance = -relevance
        attention = getattr(signals, self._first(signals, *self.needs_one_of))
        xp = namespace(attention)
        # In float64: rounding of one part must not part sums that are equal.
        saliency = xp.astype(head_mean(attention), xp.float64)
        scores = fuse(relevance, saliency, self.alpha)
        return kept_from_order(top_k(snap(scores), num_kept), as_float32(scores))


def _require_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{field} is {value!r}; choose one of {', '.join(choices)}")
