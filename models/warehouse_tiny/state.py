"""What a scene contains (ground truth) and how it looks, as frozen dataclasses.

A state is complete: rendering it and asking about it need nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.warehouse_tiny.vocabulary import COLOURS, HAZARDS, KINDS, NUM_SLOTS

Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class Item:
    """One handled object.

    Attributes:
        kind: one of ``KINDS``.
        colour: one of ``COLOURS``; the name a person would use.
        rgb: the shade actually painted, each channel in [0, 1].
        scale: size factor around 1.
        offset_m: shift from the slot's centre, (x, y).
        yaw_rad: rotation about the vertical.
    """

    kind: str
    colour: str
    rgb: Rgb = (0.5, 0.5, 0.5)
    scale: float = 1.0
    offset_m: tuple[float, float] = (0.0, 0.0)
    yaw_rad: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Item.kind is {self.kind!r}; choose one of {KINDS}")
        if self.colour not in COLOURS:
            raise ValueError(f"Item.colour is {self.colour!r}; choose one of {COLOURS}")

    @property
    def name(self) -> str:
        """The answer that names it, for example ``red box``."""
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Camera:
    """A camera that looks at the rack. Angles in degrees, lengths in metres."""

    azimuth: float = 90.0
    elevation: float = -8.0
    distance_m: float = 9.0
    lookat_m: tuple[float, float, float] = (0.0, 0.0, 2.05)
    roll: float = 0.0
    fovy: float = 36.0


@dataclass(frozen=True)
class Clutter:
    """A neutral box that carries no answer: a carton on the floor or a poster on the wall."""

    position_m: tuple[float, float, float]
    half_size_m: tuple[float, float, float]
    rgb: Rgb


@dataclass(frozen=True)
class Look:
    """Everything that changes the picture but no answer."""

    camera: Camera = Camera()
    light_position_m: tuple[float, float, float] = (-2.0, -6.0, 8.0)
    light_diffuse: float = 0.6
    ambient: float = 0.3
    light_tint: Rgb = (1.0, 1.0, 1.0)
    rack_rgb: Rgb = (0.35, 0.37, 0.42)
    panel_rgb: Rgb = (0.62, 0.62, 0.60)
    floor_rgb: Rgb = (0.55, 0.55, 0.55)
    wall_rgb: Rgb = (0.75, 0.74, 0.70)
    texture_seed: int = 0
    texture_contrast: float = 0.15
    texture_kind: int = 0
    person_rgb: Rgb = (0.75, 0.9, 0.15)
    clutter: tuple[Clutter, ...] = ()


@dataclass(frozen=True)
class SceneState:
    """Ground truth of one frame.

    Attributes:
        slots: 12 entries, row-major from the top left; None is an empty slot.
        held: the item in the gripper, or None.
        hazard: one of ``HAZARDS`` on the floor, or None.
        gripper_m: (x, y, z) of the gripper's grasp point.
        hazard_m: (x, y) of the hazard on the floor.
        hazard_yaw_rad: its rotation about the vertical.
        look: camera, light, textures, clutter.
    """

    slots: tuple[Item | None, ...]
    held: Item | None = None
    hazard: str | None = None
    gripper_m: tuple[float, float, float] = (2.05, -0.3, 2.2)
    hazard_m: tuple[float, float] = (-0.5, -1.4)
    hazard_yaw_rad: float = 0.0
    look: Look = Look()

    def __post_init__(self) -> None:
        if len(self.slots) != NUM_SLOTS:
            raise ValueError(f"SceneState.slots has {len(self.slots)} entries; give {NUM_SLOTS}")
        if self.hazard is not None and self.hazard not in HAZARDS:
            raise ValueError(f"SceneState.hazard is {self.hazard!r}; choose one of {HAZARDS}")
