"""Per-patch targets of the throw-away heads and of the CLS attention, from coverage and state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.warehouse_tiny import vocabulary as v
from models.warehouse_tiny.state import SceneState

IGNORE = -1
MIN_SHARE = 0.35
"""A patch takes the label of the entity that covers most of it, from this share up."""

NUM_CLASSES = {
    "role": 6,
    "slot": v.NUM_SLOTS,
    "kind": len(v.KINDS),
    "colour": len(v.COLOURS),
    "hazard": len(v.HAZARDS),
    "same_colour": 6,
    "shelf_pattern": 2**v.NUM_COLUMNS,
    "total": v.NUM_SLOTS + 1,
}
ROLES = ("background", "item", "held", "hazard", "panel", "gripper")


@dataclass(frozen=True)
class SceneCodes:
    """Integer form of a state; -1 is nothing. kind, colour: (13,) with the held item last."""

    kind: np.ndarray
    colour: np.ndarray
    hazard: int


def scene_codes(state: SceneState) -> SceneCodes:
    """Codes of a state."""
    items = (*state.slots, state.held)
    return SceneCodes(
        kind=np.array([v.KINDS.index(i.kind) if i else IGNORE for i in items]),
        colour=np.array([v.COLOURS.index(i.colour) if i else IGNORE for i in items]),
        hazard=v.HAZARDS.index(state.hazard) if state.hazard else IGNORE,
    )


_ROLE_OF_ENTITY = np.zeros(v.NUM_ENTITIES, np.int64)
_ROLE_OF_ENTITY[v.FIRST_ITEM : v.HELD_ITEM] = 1
_ROLE_OF_ENTITY[v.HELD_ITEM] = 2
_ROLE_OF_ENTITY[v.HAZARD] = 3
_ROLE_OF_ENTITY[v.FIRST_PANEL : v.GRIPPER] = 4
_ROLE_OF_ENTITY[v.GRIPPER] = 5


def patch_labels(coverage: np.ndarray, codes: SceneCodes) -> dict[str, np.ndarray]:
    """Targets of every head.

    Args:
        coverage: (NUM_ENTITIES, 256) in [0, 1].
        codes: of the same scene.
    Returns:
        name -> (256,) int64 class, ``IGNORE`` where the head has nothing to say. ``same_colour``,
        ``shelf_pattern`` and ``total`` make a patch know the group its slot belongs to, so that
        counting becomes reading.
    """
    owner = coverage[1:].argmax(0) + 1
    share = coverage[1:].max(0)
    clear = share >= MIN_SHARE
    role = np.where(clear, _ROLE_OF_ENTITY[owner], np.where(share < 0.1, 0, IGNORE))
    is_item = clear & (role == 1)
    in_slot = is_item | (clear & (role == 4))
    slot = np.where(role == 4, owner - v.FIRST_PANEL, owner - v.FIRST_ITEM)
    slot = np.clip(slot, 0, v.NUM_SLOTS)
    thing = is_item | (clear & (role == 2))
    thing_index = np.clip(owner - v.FIRST_ITEM, 0, v.NUM_SLOTS)
    colours = codes.colour[: v.NUM_SLOTS]
    alike = np.array([(colours == c).sum() if c >= 0 else 1 for c in colours])
    filled = (colours >= 0).reshape(-1, v.NUM_COLUMNS)
    pattern = (filled * 2 ** np.arange(v.NUM_COLUMNS)).sum(1)
    safe = np.minimum(slot, v.NUM_SLOTS - 1)
    return {
        "role": role,
        "slot": np.where(in_slot, slot, IGNORE),
        "kind": np.where(thing, codes.kind[thing_index], IGNORE),
        "colour": np.where(thing, codes.colour[thing_index], IGNORE),
        "hazard": np.where(clear & (role == 3), codes.hazard, IGNORE),
        "same_colour": np.where(is_item, np.clip(alike[safe] - 1, 0, 5), IGNORE),
        "shelf_pattern": np.where(in_slot, pattern[safe // v.NUM_COLUMNS], IGNORE),
        "total": np.where(in_slot, filled.sum(), IGNORE),
    }


_SALIENCE = np.zeros(v.NUM_ENTITIES, np.float32)
_SALIENCE[v.FIRST_ITEM : v.HELD_ITEM] = 1.0
_SALIENCE[v.HELD_ITEM] = 1.0
_SALIENCE[v.HAZARD] = 1.0
_SALIENCE[v.FIRST_PANEL : v.GRIPPER] = 0.25
_SALIENCE[v.GRIPPER] = 0.3


def saliency_target(coverage: np.ndarray, codes: SceneCodes) -> np.ndarray:
    """(256,) attention mass that CLS should pay, sum 1: things first, then empty slots.

    Every entity gets its mass whatever its size, most of it on its best patches, so that a small
    number of kept patches still touches everything.
    """
    weight = _SALIENCE.copy()
    weight[v.FIRST_PANEL : v.GRIPPER] *= codes.colour[: v.NUM_SLOTS] < 0
    sharp = coverage**2
    total = sharp.sum(1)
    seen = (total > 0.15) & (weight > 0)
    mass = (sharp[seen] / total[seen, None] * weight[seen, None]).sum(0)
    return (mass / max(mass.sum(), 1e-6)).astype(np.float32)
