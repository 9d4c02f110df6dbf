"""Uniform choice without replacement: the baseline every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_atp.errors import ConfigError
from edge_atp.pruning.base import (
    Pruner,
    any_patch_signal,
    as_indices,
    count_patches,
    kept_from_order,
)
from edge_atp.types import Selection, VisualSignals


@dataclass(frozen=True)
class Method(Pruner):
    """Seeded uniform choice; the same seed and N give the same set on every backend.

    seed: 0 or more. Sets of one seed are nested: K tokens are among the K + 1 tokens.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; it must be 0 or more")

    def _select(self, signals: VisualSignals, num_kept: int, /) -> Selection:
        order = np.random.default_rng(self.seed).permutation(count_patches(signals))[:num_kept]
        return kept_from_order(as_indices(order.tolist(), any_patch_signal(signals)), None)
