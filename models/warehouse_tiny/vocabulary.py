"""The closed world of the warehouse cell: names, geometry constants and splits.

Nothing here depends on MuJoCo or torch.
"""

from __future__ import annotations

SHELVES = ("top", "middle", "bottom")
NUM_COLUMNS = 4
NUM_SLOTS = len(SHELVES) * NUM_COLUMNS
KINDS = ("box", "drum", "tote")
COLOURS = ("red", "yellow", "green", "cyan", "blue", "purple")
HAZARDS = ("person", "cone", "pallet")

SPLITS = ("train", "val", "test", "shifted", "paraphrase")

GRID = 16
"""Patches a side: 224 pixels in patches of 14."""
NUM_PATCHES = GRID * GRID
IMAGE_SIZE = 224
PATCH_SIZE = 14

# Entity ids used by segmentation and coverage maps. Slot r, c has index r * 4 + c.
BACKGROUND = 0
FIRST_ITEM = 1
HELD_ITEM = FIRST_ITEM + NUM_SLOTS
HAZARD = HELD_ITEM + 1
FIRST_PANEL = HAZARD + 1
GRIPPER = FIRST_PANEL + NUM_SLOTS
NUM_ENTITIES = GRIPPER + 1


def slot_index(shelf: int, column: int) -> int:
    """Index of a slot, row-major from the top left."""
    return shelf * NUM_COLUMNS + column


def slot_name(slot: int) -> str:
    """Canonical answer for a place on the shelves, for example ``middle shelf, slot 3``."""
    shelf, column = divmod(slot, NUM_COLUMNS)
    return f"{SHELVES[shelf]} shelf, slot {column + 1}"
