"""TrimTokenator: drop the tokens far from the question, then keep a diverse subset of the rest."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace

from edge_atp.errors import ConfigError, ShapeError
from edge_atp.pruning.base import Pruner, as_indices, kept_from_order
from edge_atp.pruning.ops import as_float32, require_finite, snap, top_k
from edge_atp.pruning.rows import Rows, as_rows, cosine_rows
from edge_atp.pruning.similarity import in_blocks, lowest_twin, working_dtype
from edge_atp.types import Array, Selection, VisualSignals

# Median visual length over median text length from which stage 1 ranks by visual length alone:
# at 10 the text moves a distance by at most 10 %, less than visual lengths vary.
TEXT_BLIND_RATIO = 10.0


class TextBlindWarning(UserWarning):
    """Visual tokens are so much longer than text tokens that stage 1 does not see the text."""


def alignment(visual: Array, text: Array) -> Array:
    """Closeness of each visual token to the question.

    Args:
        visual: (N, H) projected visual tokens.
        text: (M, H) language-model input embeddings of the question.
    Returns:
        (N,) float64 or float32, -mean_j ||v_i - t_j||_2; at most 0, higher is closer.
    Raises:
        ShapeError: the widths differ, or a distance overflows.
    Source: TrimTokenator, sec. 3.2 (mutual information approximated by the L2 distance). A public
    re-implementation squares the distance; the mean of squares can rank tokens differently.
    """
    if visual.shape[1] != text.shape[1]:
        raise ShapeError(
            f"image_embeds are {visual.shape[1]} wide and text_tokens {text.shape[1]}; both must"
            " live in the language model's embedding space"
        )
    xp = array_namespace(visual, text)
    work = visual.shape[0] * text.shape[0] * visual.shape[1]
    dtype = working_dtype(work, visual, text)
    text = xp.astype(text, dtype, copy=False)
    text_squares = xp.vecdot(text, text)[None, :]
    parts = []
    for block in in_blocks(visual, dtype):
        # ||v - t||^2 = ||v||^2 + ||t||^2 - 2 v.t: a matrix product instead of an (N, M, H) array.
        squares = xp.vecdot(block, block)[:, None] + text_squares - 2.0 * (block @ text.T)
        distance = xp.sqrt(xp.where(squares > 0, squares, xp.zeros_like(squares)))
        parts.append(-xp.mean(distance, axis=1))
    scores = snap(xp.concat(parts))
    require_finite("the distance of image_embeds and text_tokens", scores)
    twins = lowest_twin(visual)
    return scores if twins is None else xp.take(scores, twins)


def length_ratio(visual: Array, text: Array) -> float:
    """Median length of the visual tokens over that of the text tokens; inf for zero text.

    1 where both are zero: neither drowns the other.
    """
    xp = array_namespace(visual, text)

    def median_length(rows: Array) -> float:
        rows = as_float32(rows)
        return float(xp.sort(xp.sqrt(xp.vecdot(rows, rows)))[rows.shape[0] // 2])

    visual_length, text_length = median_length(visual), median_length(text)
    if visual_length == text_length:
        return 1.0
    return visual_length / text_length if text_length > 0 else math.inf


def min_mean_similarity_order(similarity: Rows | Array, num_kept: int) -> list[int]:
    """Greedily pick the token with the lowest mean similarity to those already picked.

    Args:
        similarity: (N, N) symmetric, or its rows on demand.
        num_kept: K in [1, N].
    Returns:
        K indices in the order chosen; the first has the lowest mean over its whole row, itself
        included. Ties to the lowest index.
    Source: TrimTokenator, alg. 1. A running sum: dividing by the number chosen changes no rank.
    """
    rows = as_rows(similarity)
    means = snap(rows.mean())
    chosen = int(means.argmin())
    order = [chosen]
    total = np.zeros_like(means)
    while len(order) < num_kept:
        total += snap(rows.row(chosen))
        total[chosen] = np.inf  # stays the maximum: never chosen twice
        chosen = int(total.argmin())
        order.append(chosen)
    return order


@dataclass(frozen=True)
class Method(Pruner):
    """Two stages on the projected tokens.

    stage1_ratio: share of the N tokens that survives stage 1, (0, 1]; never fewer than K.

    ``scores`` is the alignment of stage 1. Warns with ``TextBlindWarning`` where the visual
    tokens are ``TEXT_BLIND_RATIO`` times longer than the text tokens: ||v - t|| is then ||v||, and
    the question no longer changes what is kept (published LLaVA projectors do this).
    Source: Zhang et al., "TrimTokenator: Towards Adaptive Visual Token Pruning for Large
    Multimodal Models".
    """

    needs: ClassVar[tuple[str, ...]] = ("image_embeds", "text_tokens")

    stage1_ratio: float = 0.8

    def __post_init__(self) -> None:
        if not 0.0 < self.stage1_ratio <= 1.0:
            raise ConfigError(f"stage1_ratio is {self.stage1_ratio}; it must be in (0, 1]")

    def _select(self, signals: VisualSignals, num_kept: int, /) -> Selection:
        visual, text = signals.image_embeds, signals.text_tokens
        scores = alignment(visual, text)
        ratio = length_ratio(visual, text)
        if ratio > TEXT_BLIND_RATIO:
            warnings.warn(
                f"visual tokens are {ratio:.0f} times longer than text tokens: trimtokenator's"
                " first stage ranks by visual length and does not see the question",
                TextBlindWarning,
                stacklevel=3,
            )
        xp = array_namespace(visual)
        # 1e-9: 0.8 * 5 must floor to 4 whatever the last bit of 0.8 says.
        survivors = max(math.floor(self.stage1_ratio * scores.shape[0] + 1e-9), num_kept)
        candidates = xp.sort(top_k(scores, survivors))
        similarity = cosine_rows(xp.take(visual, candidates, axis=0), num_kept)
        order = as_indices(min_mean_similarity_order(similarity, num_kept), visual)
        return kept_from_order(xp.take(candidates, order), as_float32(scores))
