"""CDPruner: a diverse subset conditioned on the question, by greedy MAP of a conditional DPP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace, device

from edge_atp.errors import ConfigError
from edge_atp.pruning.base import Pruner, as_indices, kept_from_order
from edge_atp.pruning.ops import as_float32, cosine, min_max
from edge_atp.pruning.similarity import cosine_matrix, lowest_twin
from edge_atp.types import Array, Selection, VisualSignals

FEATURES = ("image_embeds", "patch_features", "patch_embeds")
RELEVANCE_SOURCES = ("negated", "raw")


def greedy_map(
    similarity: Array, relevance: Array, num_kept: int, twins: Array | None = None
) -> list[int]:
    """Greedy MAP of the DPP with kernel L = diag(r) S diag(r), by incremental Cholesky rows.

    Args:
        similarity: (N, N) positive semi-definite, S.
        relevance: (N,) not negative, r.
        num_kept: K in [1, N].
        twins: (N,) lowest index with the same column of S, as ``lowest_twin`` gives it; keeps
            equal tokens tied to the last bit.
    Returns:
        K indices in the order chosen: always the token that grows the determinant most. Once
        the remaining gains are rounding noise (the kernel's rank is used up, or r is 0), the
        lowest indices follow.
    Source: Chen et al., "Fast Greedy MAP Inference for Determinantal Point Process", alg. 1;
    Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token
    Pruning in MLLMs" (CDPruner), sec. 3. One (t) x (t, N) product a step, never N x N.
    """
    xp = array_namespace(similarity, relevance)
    noise = 64 * float(xp.finfo(similarity.dtype).eps)
    relevance = xp.astype(relevance, xp.float64)
    gains = relevance**2 * xp.astype(xp.linalg.diagonal(similarity), xp.float64)
    floor = noise * float(xp.max(gains))
    num = gains.shape[0]
    # Cholesky rows divided by r_j, so that equal columns of S stay equal whatever their r.
    rows = xp.zeros((num_kept, num), dtype=xp.float64, device=device(similarity))
    order: list[int] = []
    while len(order) < num_kept:
        chosen = int(xp.argmax(gains))
        gain = float(gains[chosen])
        if gain <= floor:
            rest = sorted(set(range(num)) - set(order))
            return order + rest[: num_kept - len(order)]
        step = len(order)
        explained = rows[:step, chosen] @ rows[:step, :]
        if twins is not None:
            explained = xp.take(explained, twins)
        row = (xp.astype(similarity[chosen, :], xp.float64) - explained) * (
            float(relevance[chosen]) / gain**0.5
        )
        rows[step, :] = row
        gains = gains - (relevance * row) ** 2
        gains[chosen] = float("-inf")
        order.append(chosen)
    return order


@dataclass(frozen=True)
class Method(Pruner):
    """Conditional DPP over the question.

    relevance_source: "negated" (published: the plain patch-text cosine of CLIP is inverted) or
        "raw".

    Similarity is taken between the projected tokens as published; where a model prunes before
    its projector and exposes none, between its patch features, or failing those its joint-space
    patches. The published code adds 1e-6 to the min-max numerator; here r is the plain min-max,
    so the least relevant token has gain 0, and constant relevance keeps the lowest indices.
    ``scores`` is r.
    """

    needs: ClassVar[tuple[str, ...]] = ("patch_embeds", "text_embed")
    checks_itself: ClassVar[tuple[str, ...]] = ("patch_embeds", "text_embed")

    relevance_source: str = "negated"

    def __post_init__(self) -> None:
        if self.relevance_source not in RELEVANCE_SOURCES:
            raise ConfigError(
                f"relevance_source is {self.relevance_source!r}; choose one of"
                f" {', '.join(RELEVANCE_SOURCES)}"
            )

    @property
    def needs_one_of(self) -> tuple[tuple[str, ...], ...]:
        """Tokens whose mutual similarity is compared."""
        return (FEATURES,)

    def _select(self, signals: VisualSignals, num_kept: int, /) -> Selection:
        relevance = cosine(signals.patch_embeds, signals.text_embed)
        if self.relevance_source == "negated":
            relevance = -relevance
        relevance = min_max(relevance)
        features = getattr(signals, self._first(signals, FEATURES))
        twins = lowest_twin(as_float32(features))
        order = greedy_map(cosine_matrix(features), relevance, num_kept, twins)
        return kept_from_order(as_indices(order, features), as_float32(relevance))
