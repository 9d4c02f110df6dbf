"""Coverage without a renderer: every entity gets patches of its own."""

from __future__ import annotations

import numpy as np

from models.warehouse_tiny import vocabulary as v
from models.warehouse_tiny.state import SceneState


def flat_coverage(state: SceneState) -> np.ndarray:
    """(NUM_ENTITIES, 256): items and panels two full patches each, in their slot's place."""
    coverage = np.zeros((v.NUM_ENTITIES, v.NUM_PATCHES), np.float32)
    for slot, item in enumerate(state.slots):
        entity = (v.FIRST_ITEM if item else v.FIRST_PANEL) + slot
        first = (slot // 4 * 4 + 2) * v.GRID + slot % 4 * 3
        coverage[entity, first : first + 2] = 1.0
    coverage[v.HELD_ITEM if state.held else v.GRIPPER, 200:202] = 1.0
    if state.hazard:
        coverage[v.HAZARD, 240:242] = 1.0
    coverage[v.BACKGROUND] = 1.0 - coverage.sum(0)
    return coverage
