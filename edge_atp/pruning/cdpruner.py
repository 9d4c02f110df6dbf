"""CDPruner: a diverse subset conditioned on the question, by greedy MAP of a conditional DPP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edge_atp.errors import ConfigError
from edge_atp.pruning.base import Pruner, as_indices, kept_from_order
from edge_atp.pruning.ops import as_float32, cosine, min_max, on_host
from edge_atp.pruning.rows import Rows, as_rows, cosine_rows
from edge_atp.types import Array, Selection, VisualSignals

FEATURES = ("image_embeds", "patch_features", "patch_embeds")
RELEVANCE_SOURCES = ("negated", "raw")


def greedy_map(similarity: Rows | Array, relevance: Array, num_kept: int) -> list[int]:
    """Greedy MAP of the DPP with kernel L = diag(r) S diag(r), by incremental Cholesky rows.

    Args:
        similarity: (N, N) positive semi-definite S, or its rows on demand, which also know which
            tokens are equal and keep those tied to the last bit.
        relevance: (N,) not negative, r.
        num_kept: K in [1, N].
    Returns:
        K indices in the order chosen: always the token that grows the determinant most. Tokens
        whose gain is rounding noise (the chosen ones span them, or r is 0) follow last, lowest
        index first.
    Source: Chen et al., "Fast Greedy MAP Inference for Determinantal Point Process", alg. 1;
    Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token
    Pruning in MLLMs" (CDPruner), sec. 3. One (t) x (t, N) product a step, never N x N.
    """
    kernel = as_rows(similarity)
    relevance = on_host(relevance).astype(np.float64)
    gains = relevance**2 * kernel.diagonal
    # What rounding leaves of a gain that the chosen tokens explain; a token that is merely not
    # relevant keeps most of its own gain, however small.
    floor = 64 * float(np.finfo(kernel.diagonal.dtype).eps) * float(gains.max())
    noise = np.minimum(floor, 1e-3 * gains)
    num = len(gains)
    # Cholesky rows divided by r_j, so that equal columns of S stay equal whatever their r.
    rows = np.zeros((num_kept, num))
    order: list[int] = []
    while len(order) < num_kept:
        chosen = int(gains.argmax())
        gain = float(gains[chosen])
        if gain == -np.inf:
            rest = sorted(set(range(num)) - set(order))
            return order + rest[: num_kept - len(order)]
        gains[chosen] = -np.inf
        if gain <= noise[chosen]:
            continue
        step = len(order)
        row = rows[step]
        np.matmul(rows[:step, chosen], rows[:step], out=row)
        if kernel.twins is not None:
            row[:] = row[kernel.twins]
        np.subtract(kernel.row(chosen), row, out=row)
        row *= float(relevance[chosen]) / gain**0.5
        gains -= (relevance * row) ** 2
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
        order = greedy_map(cosine_rows(features, num_kept), relevance, num_kept)
        return kept_from_order(as_indices(order, features), as_float32(relevance))
