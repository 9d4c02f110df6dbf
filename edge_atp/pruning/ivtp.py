"""IVTP: group-wise attention rollout, in the ViT from CLS and in the LLM from a textual pseudo-CLS.

Layers are taken in groups of three; at the top of a group every token is scored by the rolled-out
attention it sends to the (pseudo-)CLS row, weighted by the length of its value vector, and the
lowest are pruned. The pseudo-CLS is a side row between visual and text tokens, the mean of the
question's tokens that CLIP finds relevant to the image; it scores and is never a real token.
Source: Huang et al., "IVTP: Instruction-guided Visual Token Pruning for Large Vision-Language
Models" (ECCV 2024), eq. 3-8. There is no public code. Its abstract and summaries confirm the two
stages, the group-wise rollout and the pseudo-CLS; that eq. 3 has no identity in a group's first
layer, the value lengths of eq. 4 and tau = 0.2 rest on one reading of the printed equations. The
published FLOPs follow from the schedule here (``edge_atp.flops``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace, device

from edge_atp.errors import ConfigError, ShapeError
from edge_atp.pruning.base import InModelPruner, kept_from_order
from edge_atp.pruning.ops import as_float32, best, cosine, mean_over, require_finite, snap
from edge_atp.pruning.schedule import Schedule, constant_ratio
from edge_atp.types import Array, Selection

RELEVANCE_THRESHOLD = 0.2

# Characters [start, end) of the prompt that a token stands for; (0, 0) for special tokens.
Span = tuple[int, int]


def rollout_row(attentions: Sequence[Array], row: int) -> Array:
    """One row of the attention rolled out over a group of layers.

    Args:
        attentions: first to last layer of the group, each (n, n) or (heads, n, n), averaged over
            heads.
        row: index of the CLS (or pseudo-CLS) token.
    Returns:
        (n,) float64: row of R with R = A_1, then R = (A_l + I) R. The first layer has no identity
        (eq. 3 as printed), and rows are not normalised, which changes no ranking.

    Multiplying from the left keeps one row instead of n: vector-matrix products only.
    """
    if not attentions:
        raise ShapeError("a rollout needs the attention of at least one layer")
    xp = array_namespace(*attentions)
    first, *rest = (_mean_heads(attention) for attention in attentions)
    current = xp.zeros(first.shape[0], dtype=xp.float64, device=device(first))
    current[row] = 1.0
    for attention in reversed(rest):
        current = current @ attention + current
    return current @ first


def importance(rollout: Array, values: Array) -> Array:
    """S_i = R_i ||V_i|| / sum_j R_j ||V_j|| over the tokens given (eq. 4).

    Args:
        rollout: (n,) row of the rollout.
        values: (n, dv) or (heads, n, dv) value vectors of the group's last layer.
    Returns:
        (n,) float64 that sums to 1, or zeros where every product is 0.
    Raises:
        ShapeError: a product is not finite.
    """
    xp = array_namespace(rollout, values)
    values = xp.astype(values, xp.float64)
    squares = xp.vecdot(values, values)
    lengths = xp.sqrt(squares if values.ndim == 2 else xp.sum(squares, axis=0))
    weighted = xp.astype(rollout, xp.float64) * lengths
    require_finite("attention or values", weighted)
    weighted = snap(weighted)
    total = xp.sum(weighted)
    return weighted if float(total) == 0.0 else weighted / total


def rank(
    attentions: Sequence[Array], values: Array, row: int, visual: Array, num_kept: int
) -> Selection:
    """Prune the visual tokens of one group.

    Args:
        attentions, row: as in ``rollout_row``, over all n tokens of the sequence.
        values: (n, dv) or (heads, n, dv).
        visual: (N,) int64 positions of the visual tokens in the sequence.
        num_kept: K in [1, N].
    Returns:
        Selection of indices into ``visual``; ``scores`` sum to 1 over the visual tokens.
    Raises:
        ShapeError: K is out of range, or the attention or the values are not finite.
    """
    xp = array_namespace(values)
    row_of_visual = xp.take(rollout_row(attentions, row), visual)
    scores = importance(row_of_visual, xp.take(values, visual, axis=values.ndim - 2))
    return kept_from_order(best("attention or values", scores, num_kept), as_float32(scores))


def text_relevance(clip_text_tokens: Array, visual_cls: Array) -> Array:
    """Cosine of each CLIP text token with the image's CLS embedding (eq. 6).

    Args:
        clip_text_tokens: (M', P) in the joint space.
        visual_cls: (P,) in the joint space.
    Returns:
        (M',) float32 in [-1, 1].
    """
    return as_float32(cosine(clip_text_tokens, visual_cls))


def map_relevance(relevance: Array, clip_spans: Sequence[Span], llm_spans: Sequence[Span]) -> Array:
    """Carry relevance from CLIP's tokens over to the language model's (eq. 7).

    Args:
        relevance: (M',) of CLIP's tokens.
        clip_spans: M' character spans of CLIP's tokens in the question.
        llm_spans: M character spans of the language model's tokens in the same string.
    Returns:
        (M,) float32: mean over the CLIP tokens that share characters with the LLM token, weighted
        by how many; -1, the lowest cosine, for a token that shares none (special tokens).
    """
    if len(clip_spans) != relevance.shape[0]:
        raise ShapeError(
            f"{len(clip_spans)} clip_spans for {relevance.shape[0]} relevances; one span a token"
        )
    xp = array_namespace(relevance)
    shared = [
        [float(max(0, min(end, e) - max(start, s))) for s, e in clip_spans]
        for start, end in llm_spans
    ]
    overlap = xp.asarray(shared, dtype=xp.float32, device=device(relevance))
    overlap = xp.reshape(overlap, (len(llm_spans), len(clip_spans)))
    total = xp.sum(overlap, axis=1)
    mean = overlap @ as_float32(relevance) / xp.where(total > 0, total, xp.ones_like(total))
    return xp.where(total > 0, mean, -xp.ones_like(mean))


def pseudo_cls(
    text_tokens: Array,
    relevance: Array,
    visual_cls: Array,
    threshold: float = RELEVANCE_THRESHOLD,
) -> Array:
    """Mean of the question's relevant tokens (eq. 8).

    Args:
        text_tokens: (M, H) hidden states of the question's tokens.
        relevance: (M,) from ``map_relevance``.
        visual_cls: (H,) the visual CLS after the projector, used where no token is relevant.
        threshold: tau; tokens with relevance >= tau take part.
    Returns:
        (H,) float32.
    """
    xp = array_namespace(text_tokens)
    relevant = xp.astype(relevance >= threshold, xp.float32)
    count = float(xp.sum(relevant))
    if count == 0.0:
        return as_float32(visual_cls)
    return relevant @ as_float32(text_tokens) / count


@dataclass(frozen=True)
class Method(InModelPruner):
    """Both stages.

    group_size: layers a rollout spans; a group that starts at layer l is pruned before layer
        l + group_size.
    encoder_layers: ViT layers in stage 1 (24 of CLIP-L; the last group's cut is after the last
        layer that runs, before the projector).
    encoder_kept: patches left after stage 1; 0 for the published share, 120 of 576.
    llm_layers: LLM layers in stage 2.
    llm_kept: tokens left after stage 2 when no budget is given; 0 for 64 of 576.
    threshold: tau of the pseudo-CLS.
    """

    site: ClassVar[str] = "in_llm"

    group_size: int = 3
    encoder_layers: int = 24
    encoder_kept: int = 0
    llm_layers: int = 12
    llm_kept: int = 0
    threshold: float = RELEVANCE_THRESHOLD

    def __post_init__(self) -> None:
        for name in ("encoder_layers", "llm_layers"):
            layers = getattr(self, name)
            if self.group_size < 1 or layers % self.group_size:
                raise ConfigError(
                    f"{name} is {layers} and group_size {self.group_size}; layers must be a"
                    " multiple of the group"
                )

    def encoder_schedule(self, num_visual: int, num_kept: int | None = None) -> Schedule:
        """Stage 1: constant-ratio cuts before layers 3, 6, ... of the ViT."""
        return constant_ratio(
            self._cuts(self.encoder_layers), num_visual, self._between(num_visual, num_kept)
        )

    def schedule(self, num_visual: int, num_kept: int | None = None) -> Schedule:
        """Stage 2: from the patches that stage 1 leaves down to ``num_kept``.

        ``num_visual`` is the number of patches before stage 1.
        """
        left = self._between(num_visual, num_kept)
        kept = self._final(num_visual) if num_kept is None else num_kept
        return constant_ratio(self._cuts(self.llm_layers), left, kept)

    def _cuts(self, layers: int) -> list[int]:
        return list(range(self.group_size, layers + 1, self.group_size))

    def _final(self, num_visual: int) -> int:
        return self.llm_kept or max(1, round(num_visual * 64 / 576))

    def _between(self, num_visual: int, num_kept: int | None) -> int:
        kept = self._final(num_visual) if num_kept is None else num_kept
        return min(num_visual, max(kept, self.encoder_kept or round(num_visual * 120 / 576)))


def _mean_heads(attention: Array) -> Array:
    if attention.ndim == 3:
        return mean_over(attention, 0)
    xp = array_namespace(attention)
    return xp.astype(attention, xp.float64)
