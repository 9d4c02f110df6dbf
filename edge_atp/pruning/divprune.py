"""DivPrune: the most diverse subset, by greedy max-min distance; the question plays no part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edge_atp.pruning.base import Pruner, as_indices, kept_from_order
from edge_atp.pruning.ops import on_host
from edge_atp.pruning.similarity import scratch_cosines, snap_cosines, without_self
from edge_atp.types import Array, Selection, VisualSignals


def max_min_order(similarity: Array, num_kept: int) -> list[int]:
    """Greedy solution of the max-min diversity problem, distance = 1 - similarity.

    Args:
        similarity: (N, N) symmetric, -inf on the diagonal (see ``without_self``).
        num_kept: K in [1, N].
    Returns:
        K indices in the order chosen: first the token whose nearest other token is farthest,
        then always the token farthest from its nearest chosen one. Ties to the lowest index.
    Source: Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal
    Models", alg. 1. The published code writes the first rule as the second-smallest distance of a
    row that includes the token itself, which is the nearest other token.
    """
    similarity = on_host(similarity)  # on a device every step would wait for its argmin
    chosen = int(np.argmin(np.max(similarity, axis=0)))
    order = [chosen]
    closest = np.full_like(similarity[0], -np.inf)
    while len(order) < num_kept:
        np.maximum(closest, similarity[chosen], out=closest)
        closest[chosen] = np.inf  # stays the maximum: never chosen twice
        chosen = int(closest.argmin())
        order.append(chosen)
    return order


@dataclass(frozen=True)
class Method(Pruner):
    """Max-min diversity on the projected tokens, distance 1 - cosine."""

    needs: ClassVar[tuple[str, ...]] = ("image_embeds",)

    def _select(self, signals: VisualSignals, num_kept: int, /) -> Selection:
        similarity = without_self(snap_cosines(scratch_cosines(signals.image_embeds)[0]))
        order = max_min_order(similarity, num_kept)
        return kept_from_order(as_indices(order, signals.image_embeds), None)
