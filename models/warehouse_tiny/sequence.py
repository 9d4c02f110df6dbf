"""A cell at work, frame by frame: what a fixed camera would record.

The arm places the item it holds into an empty slot, a person walks in, and the arm takes another
item out. Ground truth changes when the gripper opens or closes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from models.warehouse_tiny.scene import (
    GRIPPER_HOME_M,
    sample_item,
    sample_scene,
    scene_rng,
    slot_centre_m,
)
from models.warehouse_tiny.shapes import GRIP_TO_TOP_M, item_height_m
from models.warehouse_tiny.state import Item, SceneState

# Shares of the whole sequence at which each motion starts and ends.
REACH_OUT = (0.20, 0.30)
COME_BACK = (0.32, 0.42)
PERSON_ENTERS = (0.45, 0.52)
SECOND_REACH = (0.62, 0.72)
SECOND_BACK = (0.74, 0.84)
IN_FRONT_Y_M = -0.75


def sequence(seed: int, num_frames: int, split: str = "test") -> Iterator[SceneState]:
    """Yield the states of ``num_frames`` frames; the same seed gives the same sequence.

    Args:
        seed: picks the initial scene and the two slots.
        num_frames: at any frame rate; the story is stretched over them.
        split: whose ranges of camera, light and colour are used.
    Raises:
        ValueError: fewer than 2 frames.
    """
    if num_frames < 2:
        raise ValueError(f"num_frames is {num_frames}; give at least 2")
    rng = scene_rng(split, seed, stream=5)
    start = _initial_state(rng, split, seed)
    held = start.held
    assert held is not None  # _initial_state fills the gripper
    target = int(rng.choice([s for s, item in enumerate(start.slots) if item is None]))
    source = int(rng.choice([s for s, item in enumerate(start.slots) if item is not None]))
    taken = start.slots[source]
    assert taken is not None  # source is a filled slot
    for frame in range(num_frames):
        yield _state_at(frame / (num_frames - 1), start, held, target, taken, source)


def _initial_state(rng: np.random.Generator, split: str, seed: int) -> SceneState:
    """A scene with a full gripper, no hazard, and both free and filled slots."""
    state = sample_scene(split, seed)
    slots = list(state.slots)
    if all(slots):
        slots[int(rng.integers(len(slots)))] = None
    while sum(item is not None for item in slots) < 3:
        slots[int(rng.integers(len(slots)))] = sample_item(rng, split == "shifted")
    held = state.held or sample_item(rng, split == "shifted", held=True)
    return replace(state, slots=tuple(slots), held=held, hazard=None, gripper_m=GRIPPER_HOME_M)


def _progress(time: float, span: tuple[float, float]) -> float:
    """Smooth 0 to 1 while time runs through the span."""
    share = min(max((time - span[0]) / (span[1] - span[0]), 0.0), 1.0)
    return share * share * (3 - 2 * share)


def _grasp_point(slot: int, item: Item) -> tuple[float, float, float]:
    x, z = slot_centre_m(slot)
    return x, IN_FRONT_Y_M, z + item_height_m(item) - GRIP_TO_TOP_M


def _between(
    a: tuple[float, float, float], b: tuple[float, float, float], share: float
) -> tuple[float, float, float]:
    return (
        a[0] + (b[0] - a[0]) * share,
        a[1] + (b[1] - a[1]) * share,
        a[2] + (b[2] - a[2]) * share,
    )


def _state_at(
    time: float, start: SceneState, held: Item, target: int, taken: Item, source: int
) -> SceneState:
    """State at a time in [0, 1]."""
    slots: list[Item | None] = list(start.slots)
    in_gripper: Item | None = held
    first = _progress(time, REACH_OUT) - _progress(time, COME_BACK)
    second = _progress(time, SECOND_REACH) - _progress(time, SECOND_BACK)
    if time >= REACH_OUT[1]:
        slots[target], in_gripper = replace(held, offset_m=(0.0, 0.0)), None
    if time >= SECOND_REACH[1]:
        slots[source], in_gripper = None, replace(taken, offset_m=(0.0, 0.0))
    gripper = _between(GRIPPER_HOME_M, _grasp_point(target, held), first)
    if second > 0:
        gripper = _between(GRIPPER_HOME_M, _grasp_point(source, taken), second)
    walked = _progress(time, PERSON_ENTERS)
    return replace(
        start,
        slots=tuple(slots),
        held=in_gripper,
        gripper_m=gripper,
        hazard="person" if time > PERSON_ENTERS[0] else None,
        hazard_m=(-3.0 + 1.9 * walked, -1.3),
        hazard_yaw_rad=0.3,
    )
