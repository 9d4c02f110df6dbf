"""Keep the patches the CLS token attends to most (FasterVLM's rule)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edge_atp.pruning.base import Pruner, kept_from_order
from edge_atp.pruning.ops import head_mean, top_k
from edge_atp.types import Selection, VisualSignals


@dataclass(frozen=True)
class Method(Pruner):
    """Top K by head-mean CLS attention; the question plays no part."""

    needs: ClassVar[tuple[str, ...]] = ("cls_attention",)

    def _select(self, signals: VisualSignals, num_kept: int, /) -> Selection:
        scores = head_mean(signals.cls_attention)
        return kept_from_order(top_k(scores, num_kept), scores)
