"""No pruning: every visual token stays, whatever budget was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from array_api_compat import array_namespace, device

from edge_atp.pruning.base import Pruner, any_patch_signal, count_patches
from edge_atp.types import Selection, VisualSignals


@dataclass(frozen=True)
class Method(Pruner):
    """The dense model."""

    def _select(self, signals: VisualSignals, _num_kept: int, /) -> Selection:
        reference = any_patch_signal(signals)
        xp = array_namespace(reference)
        every = xp.arange(count_patches(signals), dtype=xp.int64, device=device(reference))
        return Selection(kept_indices=every, scores=None, order=every)
