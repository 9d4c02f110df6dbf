"""Gates: worst measurements with their limits, and the distances that several of them share.

Knows nothing of models; ``parity``, ``parity_pieces``, ``parity_cut`` and ``accuracy`` measure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import ArtifactError

# Below this distance between the last kept and the first dropped score, float32 rounding may
# order them either way.
BOUNDARY_GAP = 1e-5


@dataclass(frozen=True)
class Gate:
    """``value`` is the worst measurement; it must not exceed ``limit`` where there is one."""

    name: str
    value: float
    limit: float | None

    @property
    def passed(self) -> bool:
        """Whether the value is within the limit (NaN is not)."""
        return self.value <= (np.inf if self.limit is None else self.limit)


class Measurements:
    """Worst values over all inputs, by gate name, and the limits of a precision."""

    def __init__(self, limits: Mapping[str, float]) -> None:
        self._worst: dict[str, float] = {}
        self._limits = limits

    def add(self, name: str, value: float) -> None:
        """Record one measurement of a gate."""
        # np.fmax would hide NaN; np.maximum keeps it, and a NaN fails its gate.
        self._worst[name] = float(np.maximum(self._worst.get(name, 0.0), value))

    def gates(self) -> list[Gate]:
        """All gates so far."""
        return [Gate(name, value, self._limits.get(name)) for name, value in self._worst.items()]

    def as_json(self) -> dict[str, dict[str, float | None]]:
        """Value and limit by gate name, as the manifest records them."""
        return {g.name: {"value": g.value, "limit": g.limit} for g in self.gates()}

    def require(self) -> None:
        """Stop at a gate that failed.

        Raises:
            ArtifactError: lists each failed gate with its value and limit.
        """
        if failed := [gate for gate in self.gates() if not gate.passed]:
            lines = "; ".join(f"{g.name} is {g.value:.3g}, limit {g.limit}" for g in failed)
            raise ArtifactError(f"parity failed, nothing was written: {lines}")


def relative_l2(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Distance of two arrays of one shape, as a share of the length of ``theirs``."""
    return float(np.linalg.norm(ours - theirs) / max(float(np.linalg.norm(theirs)), 1e-12))


def jaccard_distance(ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> float:
    """1 - |common| / |either| of two sets of distinct indices; 0 for the same set."""
    common = len(np.intersect1d(ours, theirs))
    return 1.0 - common / (len(ours) + len(theirs) - common)
