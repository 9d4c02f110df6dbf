"""Primitive parts that make up an item, the arm or a hazard, in metres.

A part is what one generic geom becomes: type, half sizes, position, yaw, colour.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.warehouse_tiny.state import Item, Rgb, SceneState

GRIP_TO_TOP_M = 0.45
"""A held item hangs with its top this far above the grasp point."""

Vec3 = tuple[float, float, float]


@dataclass(frozen=True)
class Part:
    """One primitive. ``kind``: box, cylinder, sphere or capsule; position is its centre."""

    kind: str
    half_size_m: Vec3
    position_m: Vec3
    rgb: Rgb
    yaw_rad: float = 0.0


def item_height_m(item: Item) -> float:
    """Height of an item, lid included."""
    return {"box": 0.62, "drum": 0.8, "tote": 0.34}[item.kind] * item.scale


def _scaled(rgb: Rgb, factor: float) -> Rgb:
    return (min(rgb[0] * factor, 1.0), min(rgb[1] * factor, 1.0), min(rgb[2] * factor, 1.0))


def item_parts(item: Item) -> list[Part]:
    """Parts of an item standing on z = 0 at the origin.

    A box is a near cube with a light band of tape, a drum is tall and narrow with a light lid and
    a dark ring, a tote is a low wide open bin: three outlines that differ in height and width.
    """
    s, rgb = item.scale, item.rgb
    if item.kind == "box":
        h = 0.31 * s
        tape = (0.93, 0.90, 0.82)
        return [
            Part("box", (0.33 * s, 0.3 * s, h), (0, 0, h), rgb),
            Part("box", (0.07 * s, 0.302 * s, 0.302 * s), (0, 0, h), tape),
        ]
    if item.kind == "drum":
        h = 0.36 * s
        return [
            Part("cylinder", (0.21 * s, h, 0), (0, 0, h), rgb),
            Part("cylinder", (0.225 * s, 0.05 * s, 0), (0, 0, 2 * h + 0.03 * s), (0.9, 0.9, 0.9)),
            Part("cylinder", (0.22 * s, 0.03 * s, 0), (0, 0, h), _scaled(rgb, 0.35)),
        ]
    w, d, h, t = 0.42 * s, 0.3 * s, 0.17 * s, 0.025
    inside = _scaled(rgb, 0.8)
    return [
        Part("box", (w, t, h), (0, -d, h), rgb),
        Part("box", (w, t, h), (0, d, h), inside),
        Part("box", (t, d, h), (-w, 0, h), rgb),
        Part("box", (t, d, h), (w, 0, h), rgb),
        Part("box", (w, d, t), (0, 0, t), _scaled(rgb, 0.6)),
    ]


def arm_parts(state: SceneState) -> list[Part]:
    """Mast, boom, extension and gripper; the grasp point is the centre of a held item."""
    x, y, z = state.gripper_m
    steel, dark = (0.92, 0.93, 0.95), (0.2, 0.2, 0.23)
    top = z + 0.62
    mast_x, mast_y = 2.62, 0.1
    reach = mast_x - x
    return [
        Part("box", (0.1, 0.1, 2.6), (mast_x, mast_y, 2.6), dark),
        Part("box", (reach / 2 + 0.06, 0.06, 0.06), (x + reach / 2, mast_y, top), steel),
        Part("box", (0.05, (mast_y - y) / 2 + 0.05, 0.05), (x, (y + mast_y) / 2, top), steel),
        Part("box", (0.3, 0.07, 0.05), (x, y, z + 0.5), dark),
        Part("box", (0.03, 0.06, 0.12), (x - 0.28, y, z + 0.4), dark),
        Part("box", (0.03, 0.06, 0.12), (x + 0.28, y, z + 0.4), dark),
    ]


def hazard_parts(kind: str, vest: Rgb) -> list[Part]:
    """Parts of a floor hazard standing at the origin."""
    if kind == "person":
        skin, trousers, helmet = (0.85, 0.65, 0.52), (0.12, 0.13, 0.22), (0.97, 0.97, 0.95)
        return [
            Part("capsule", (0.09, 0.33, 0), (-0.12, 0, 0.42), trousers),
            Part("capsule", (0.09, 0.33, 0), (0.12, 0, 0.42), trousers),
            Part("box", (0.24, 0.14, 0.3), (0, 0, 1.1), vest),
            Part("capsule", (0.07, 0.24, 0), (-0.31, 0, 1.1), vest),
            Part("capsule", (0.07, 0.24, 0), (0.31, 0, 1.1), vest),
            Part("sphere", (0.15, 0, 0), (0, 0, 1.57), skin),
            Part("sphere", (0.155, 0, 0), (0, 0, 1.64), helmet),
        ]
    if kind == "cone":
        orange, white = (1.0, 0.38, 0.05), (0.95, 0.95, 0.95)
        return [
            Part("box", (0.3, 0.3, 0.03), (0, 0, 0.03), (0.1, 0.1, 0.1)),
            Part("cylinder", (0.22, 0.12, 0), (0, 0, 0.18), orange),
            Part("cylinder", (0.17, 0.09, 0), (0, 0, 0.38), white),
            Part("cylinder", (0.12, 0.12, 0), (0, 0, 0.58), orange),
            Part("cylinder", (0.07, 0.09, 0), (0, 0, 0.78), orange),
        ]
    wood, dark = (0.72, 0.52, 0.3), (0.5, 0.35, 0.2)
    blocks = [Part("box", (0.1, 0.4, 0.1), (x, 0, 0.1), dark) for x in (-0.5, 0.0, 0.5)]
    slats = [Part("box", (0.6, 0.09, 0.03), (0, y, 0.23), wood) for y in (-0.32, -0.1, 0.12, 0.33)]
    return blocks + slats
