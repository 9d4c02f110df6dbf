"""Sample scenes: one state per (split, seed), and sequences for a recorded camera.

The same (split, seed) gives the same state on every machine. The ``shifted`` split draws camera
poses, lights, textures, clutter and colour shades from ranges that training never sees; the
ground truth (what is where) has the same distribution everywhere. Rendering is in ``render``.
"""

from __future__ import annotations

import colorsys

import numpy as np

from models.warehouse_tiny.state import Camera, Clutter, Item, Look, Rgb, SceneState
from models.warehouse_tiny.vocabulary import (
    COLOURS,
    HAZARDS,
    KINDS,
    NUM_COLUMNS,
    NUM_SLOTS,
    SPLITS,
)

RACK_CENTRE_X_M = -0.45
SLOT_SIZE_M = 1.0
LOWEST_BOARD_M = 1.2
GRIPPER_HOME_M = (2.08, -0.35, 2.3)

# Hue in degrees, saturation and value of the pure shade; hues are at least 38 degrees apart.
_HSV = {
    "red": (0.0, 0.92, 0.85),
    "yellow": (52.0, 0.92, 0.93),
    "green": (122.0, 0.80, 0.62),
    "cyan": (182.0, 0.80, 0.88),
    "blue": (224.0, 0.88, 0.80),
    "purple": (288.0, 0.72, 0.72),
}


def slot_centre_m(slot: int) -> tuple[float, float]:
    """(x, z) of the floor centre of a slot in metres."""
    shelf, column = divmod(slot, NUM_COLUMNS)
    x = RACK_CENTRE_X_M + (column - (NUM_COLUMNS - 1) / 2) * SLOT_SIZE_M
    return x, LOWEST_BOARD_M + (2 - shelf) * SLOT_SIZE_M


def scene_rng(split: str, seed: int, stream: int = 0) -> np.random.Generator:
    """Random generator of one scene; streams separate the picture from the questions."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; choose one of {SPLITS}")
    if seed < 0:
        raise ValueError(f"seed is {seed}; give a non-negative integer")
    return np.random.default_rng([SPLITS.index(split), seed, stream])


def sample_scene(split: str, seed: int) -> SceneState:
    """Draw the scene of (split, seed).

    Raises:
        ValueError: the split is unknown or the seed is negative.
    """
    rng = scene_rng(split, seed)
    shifted = split == "shifted"
    fill = rng.uniform(0.25, 0.85)
    slots = tuple(
        sample_item(rng, shifted) if rng.random() < fill else None for _ in range(NUM_SLOTS)
    )
    held = sample_item(rng, shifted, held=True) if rng.random() < 0.6 else None
    hazard = HAZARDS[rng.integers(3)] if rng.random() < 0.7 else None
    return SceneState(
        slots=slots,
        held=held,
        hazard=hazard,
        gripper_m=_sample_gripper(rng),
        hazard_m=(float(rng.uniform(-2.2, 1.6)), float(rng.uniform(-1.7, -1.0))),
        hazard_yaw_rad=float(rng.uniform(-np.pi, np.pi)),
        look=sample_look(rng, shifted),
    )


def sample_item(rng: np.random.Generator, shifted: bool, held: bool = False) -> Item:
    """Draw one object; held ones stay near the gripper's axis."""
    colour = COLOURS[rng.integers(len(COLOURS))]
    kind = KINDS[rng.integers(len(KINDS))]
    reach = 0.0 if held else 0.08
    return Item(
        kind=kind,
        colour=colour,
        rgb=_shade(rng, colour, shifted),
        scale=float(rng.uniform(0.92, 1.08)),
        offset_m=(float(rng.uniform(-reach, reach)), float(rng.uniform(-reach, reach))),
        yaw_rad=float(rng.uniform(-0.35, 0.35)),
    )


def _shade(rng: np.random.Generator, colour: str, shifted: bool) -> Rgb:
    """A shade of a colour: within 6 degrees of hue in training, 6 to 10 away when shifted."""
    hue, saturation, value = _HSV[colour]
    if shifted:
        hue += rng.choice([-1.0, 1.0]) * rng.uniform(6, 10)
        saturation *= rng.uniform(0.72, 0.84)
        value *= rng.uniform(0.78, 0.88)
    else:
        hue += rng.uniform(-6, 6)
        saturation *= rng.uniform(0.84, 1.06)
        value *= rng.uniform(0.88, 1.06)
    red, green, blue = colorsys.hsv_to_rgb(
        (hue % 360.0) / 360.0, min(saturation, 1.0), min(value, 1.0)
    )
    return red, green, blue


def _sample_gripper(rng: np.random.Generator) -> tuple[float, float, float]:
    """Mostly beside the rack; one time in eight reaching in front of it."""
    if rng.random() < 0.125:
        return (
            float(rng.uniform(-1.9, 1.6)),
            float(rng.uniform(-1.15, -0.95)),
            float(rng.uniform(1.5, 4.0)),
        )
    return (
        GRIPPER_HOME_M[0] + float(rng.uniform(-0.08, 0.1)),
        GRIPPER_HOME_M[1] + float(rng.uniform(-0.15, 0.15)),
        float(rng.uniform(1.3, 3.7)),
    )


def _outside(rng: np.random.Generator, inner: float, outer: float) -> float:
    """A value whose magnitude lies between inner and outer, either sign."""
    return float(rng.choice([-1.0, 1.0]) * rng.uniform(inner, outer))


def _sample_camera(rng: np.random.Generator, shifted: bool) -> Camera:
    if shifted:
        return Camera(
            azimuth=90.0 + _outside(rng, 8.0, 13.0),
            elevation=-float(rng.choice([rng.uniform(2.0, 4.0), rng.uniform(14.0, 17.0)])),
            distance_m=float(rng.choice([rng.uniform(8.5, 8.8), rng.uniform(9.6, 10.2)])),
            lookat_m=(0.04 + _outside(rng, 0.12, 0.2), 0.0, 2.05 + _outside(rng, 0.12, 0.2)),
            roll=_outside(rng, 1.5, 2.5),
        )
    return Camera(
        azimuth=90.0 + float(rng.uniform(-8.0, 8.0)),
        elevation=-float(rng.uniform(4.0, 14.0)),
        distance_m=float(rng.uniform(8.8, 9.6)),
        lookat_m=(float(rng.uniform(-0.08, 0.16)), 0.0, 2.05 + float(rng.uniform(-0.12, 0.12))),
        roll=float(rng.uniform(-1.5, 1.5)),
    )


def sample_look(rng: np.random.Generator, shifted: bool) -> Look:
    """Draw camera, lights, materials and clutter; shifted ranges do not overlap the others."""
    camera = _sample_camera(rng, shifted)
    if shifted:
        light = float(rng.choice([rng.uniform(0.32, 0.4), rng.uniform(0.75, 0.85)]))
        tint = np.array([1.0, 1.0, 1.0]) + rng.choice([-1.0, 1.0]) * np.array([0.1, 0.0, -0.1])
        saturation, contrast, kind, num_clutter = (0.25, 0.45), (0.25, 0.4), 2, (5, 9)
    else:
        light = float(rng.uniform(0.4, 0.75))
        tint = 1.0 + rng.uniform(-0.05, 0.05, 3)
        saturation, contrast, kind = (0.0, 0.25), (0.0, 0.25), int(rng.integers(2))
        num_clutter = (0, 5)
    return Look(
        camera=camera,
        light_position_m=(
            float(rng.uniform(-4, 4)),
            float(rng.uniform(-9, -5)),
            float(rng.uniform(6, 10)),
        ),
        light_diffuse=light,
        ambient=float(rng.uniform(0.25, 0.4)),
        light_tint=_rgb(tint),
        rack_rgb=_material(rng, saturation, (0.15, 0.45)),
        panel_rgb=_material(rng, saturation, (0.45, 0.8)),
        floor_rgb=_material(rng, saturation, (0.3, 0.75)),
        wall_rgb=_material(rng, saturation, (0.4, 0.9)),
        texture_seed=int(rng.integers(2**31)),
        texture_contrast=float(rng.uniform(*contrast)),
        texture_kind=kind,
        person_rgb=_material(rng, (0.1, 0.9), (0.3, 0.95)),
        clutter=tuple(_sample_clutter(rng, saturation) for _ in range(rng.integers(*num_clutter))),
    )


def _rgb(values: np.ndarray) -> Rgb:
    return float(values[0]), float(values[1]), float(values[2])


def _material(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> Rgb:
    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))


def _sample_clutter(rng: np.random.Generator, saturation: tuple[float, float]) -> Clutter:
    """A poster on the wall, or a carton on the floor behind or beside the rack."""
    rgb = _material(rng, saturation, (0.25, 0.9))
    if rng.random() < 0.5:
        half = (float(rng.uniform(0.2, 0.8)), 0.02, float(rng.uniform(0.2, 0.7)))
        return Clutter((float(rng.uniform(-4, 4)), 2.9, float(rng.uniform(0.8, 6))), half, rgb)
    half = tuple(float(v) for v in rng.uniform(0.15, 0.4, 3))
    x = float(rng.uniform(-3.6, 3.8))
    return Clutter((x, float(rng.uniform(0.9, 2.4)), half[2]), (half[0], half[1], half[2]), rgb)
