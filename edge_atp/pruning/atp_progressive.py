"""Progressive ATP: the saliency-relevance blend inside the LLM, pruned stage by stage.

At each scheduled layer a visual token's relevance is the attention it gets from the text, its
saliency the attention it gets from the other visual tokens.
Source: the earlier abstract of Li, Song, Hu, "Adaptive Token Pruning" (dynamic importance from
text-to-visual and visual-to-visual attention), with the fusion of the published method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace, device

from edge_atp.errors import ConfigError, ShapeError
from edge_atp.pruning.atp import fuse
from edge_atp.pruning.base import InModelPruner, kept_from_order
from edge_atp.pruning.ops import as_float32, best, mean_over, require_finite, snap
from edge_atp.pruning.schedule import Schedule, constant_ratio, from_ratios
from edge_atp.types import Array, Selection


def importance(text_rows: Array, visual_rows: Array, alpha: float, causal: bool = True) -> Array:
    """Blend the attention visual tokens get from the text with what they get from each other.

    Args:
        text_rows: (heads, T, N) attention of the question's tokens to the visual ones.
        visual_rows: (heads, N, N) attention of visual tokens to visual ones.
        alpha: weight of the text in [0, 1].
        causal: token j is visible to N - j queries only, and its saliency is the mean over those;
            over all queries, early patches would win by position. False for full attention.
    Returns:
        (N,) float64 in [0, 1].
    Raises:
        ShapeError: the two blocks differ in N, or are not finite.
    """
    if text_rows.shape[-1] != visual_rows.shape[-1]:
        raise ShapeError(
            f"text_rows {tuple(text_rows.shape)} and visual_rows {tuple(visual_rows.shape)} must"
            " end in the same number of visual tokens"
        )
    xp = array_namespace(text_rows, visual_rows)
    relevance = mean_over(text_rows, (0, 1))
    saliency = mean_over(visual_rows, (0, 1))
    if causal:
        num = saliency.shape[0]
        position = xp.arange(num, dtype=xp.float64, device=device(saliency))
        saliency = saliency * num / (num - position)
    require_finite("text_rows", relevance)
    require_finite("visual_rows", saliency)
    # Snapped: min-max would stretch the rounding errors of a constant to the whole range.
    return snap(fuse(snap(relevance), snap(saliency), alpha))


def rank(text_rows: Array, visual_rows: Array, num_kept: int, alpha: float) -> Selection:
    """Keep the ``num_kept`` most important of N visual tokens; shapes as in ``importance``.

    Raises:
        ShapeError: K is out of [1, N], or the attention is not finite.
    """
    scores = importance(text_rows, visual_rows, alpha)
    return kept_from_order(best("attention", scores, num_kept), as_float32(scores))


@dataclass(frozen=True)
class Method(InModelPruner):
    """Staged ATP.

    layers: layers that fewer tokens enter; both attention blocks are those of that layer.
    ratios: share of the original visual tokens left from each of them on.
    alpha: weight of the text.
    """

    site: ClassVar[str] = "in_llm"

    layers: tuple[int, ...] = (4, 8, 16)
    ratios: tuple[float, ...] = (0.5, 0.25, 0.125)
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ConfigError(f"alpha is {self.alpha}; it must be in [0, 1]")
        if len(self.layers) != len(self.ratios):
            raise ConfigError(f"layers {self.layers} and ratios {self.ratios} differ in length")

    def schedule(self, num_visual: int, num_kept: int | None = None) -> Schedule:
        """The ratios' counts; with a budget, constant-ratio cuts down to it."""
        if num_kept is None:
            return from_ratios(self.layers, self.ratios, num_visual)
        return constant_ratio(self.layers, num_visual, num_kept)

    def scored_rows(self, num_visual: int, num_text: int) -> int:
        """The text rows and the visual rows."""
        return num_visual + num_text
