"""Uniform choice without replacement: the baseline every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace, device

from edge_atp.pruning.base import Pruner, any_patch_signal, count_patches, kept_from_order
from edge_atp.types import Selection, VisualSignals


@dataclass(frozen=True)
class Method(Pruner):
    """Seeded uniform choice; the same seed and N give the same set on every backend."""

    seed: int = 0

    def _select(self, signals: VisualSignals, num_kept: int) -> Selection:
        reference = any_patch_signal(signals)
        xp = array_namespace(reference)
        order = np.random.default_rng(self.seed).permutation(count_patches(signals))[:num_kept]
        return kept_from_order(
            xp.asarray(order.tolist(), dtype=xp.int64, device=device(reference)), None
        )
