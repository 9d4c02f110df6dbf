"""The cell's physics as a MuJoCo model: rack, items as free bodies, a gantry with a gripper.

Joints of the arm are world coordinates of the tool, the point that touches the top of an item:
``gantry_x``, ``gantry_y``, ``gantry_z``, and ``finger``, 0 open to FINGER_TRAVEL_M closed.

Left out: the arm does not touch anything but the item it grips (as drawn, its boom passes through
the rack), and the rack's posts are no obstacles.
"""

from __future__ import annotations

import math

from models.warehouse_tiny.scene import LOWEST_BOARD_M, RACK_CENTRE_X_M, slot_centre_m
from models.warehouse_tiny.shapes import item_height_m
from models.warehouse_tiny.state import Item, SceneState

ITEM_Y_M = -0.12  # where the pictures show an item without offset
FINGER_TRAVEL_M = 0.05
TIMESTEP_S = 0.005
ITEM_MASS_KG = 4.0
JOINTS = ("gantry_x", "gantry_y", "gantry_z", "finger")

# Half width and half depth of the items' outlines in models.warehouse_tiny.shapes.
_HALF_M = {"box": (0.33, 0.302), "drum": (0.225, 0.225), "tote": (0.42, 0.325)}
_RANGES_M = {"gantry_x": (-2.3, 2.4), "gantry_y": (-1.3, 0.3), "gantry_z": (0.8, 4.6)}


def build_cell(state: SceneState, items: dict[str, Item]) -> str:
    """MJCF text.

    Args:
        state: gives the slots of the items.
        items: by body name, those of ``state.slots`` in the order of the slots.
    """
    slots = [slot for slot, item in enumerate(state.slots) if item is not None]
    bodies = [
        _item_body(name, item, slot)
        for (name, item), slot in zip(items.items(), slots, strict=True)
    ]
    welds = [
        f'<weld name="grip_{name}" body1="hand" body2="{name}" active="false" solref="0.02 1"/>'
        for name in items
    ]
    servos = [
        f'<position name="{name}" joint="{name}" kp="{20000 if name != "finger" else 200}" '
        'dampratio="1"/>'
        for name in JOINTS
    ]
    return f"""
<mujoco model="warehouse_cell_physics">
  <option timestep="{TIMESTEP_S}" integrator="implicitfast"/>
  <worldbody>
    <geom name="floor" type="plane" size="12 12 1"/>
    {"".join(_rack())}
    {_arm()}
    {"".join(bodies)}
  </worldbody>
  <equality>{"".join(welds)}</equality>
  <actuator>{"".join(servos)}</actuator>
</mujoco>"""


def _rack() -> list[str]:
    boards = [
        f'<geom name="board{board}" type="box" size="2.04 0.5 0.04" '
        f'pos="{RACK_CENTRE_X_M} 0 {LOWEST_BOARD_M + board - 0.04}"/>'
        for board in range(4)
    ]
    back = (
        '<geom name="back" type="box" size="2.04 0.02 1.5" '
        f'pos="{RACK_CENTRE_X_M} 0.5 {LOWEST_BOARD_M + 1.5}"/>'
    )
    return [*boards, back]


def _arm() -> str:
    """Three nested slides; a slide's position is the world coordinate of the tool."""
    ghost = 'contype="0" conaffinity="0"'

    def slide(name: str, axis: str) -> str:
        low, high = _RANGES_M[name]
        return (
            f'<joint name="{name}" type="slide" axis="{axis}" limited="true" range="{low} {high}"/>'
        )

    return f"""
    <body name="carriage" gravcomp="1">
      {slide("gantry_x", "1 0 0")}
      <geom type="box" size="0.1 0.1 0.3" mass="10" {ghost}/>
      <body name="boom" gravcomp="1">
        {slide("gantry_y", "0 1 0")}
        <geom type="box" size="0.05 0.4 0.05" mass="5" {ghost}/>
        <body name="hand" gravcomp="1">
          {slide("gantry_z", "0 0 1")}
          <geom type="box" size="0.3 0.07 0.05" pos="0 0 0.05" mass="5" {ghost}/>
          <body name="finger" pos="0.28 0 -0.05" gravcomp="1">
            <joint name="finger" type="slide" axis="-1 0 0" range="0 {FINGER_TRAVEL_M}"
              limited="true" damping="5"/>
            <geom type="box" size="0.03 0.06 0.12" mass="0.5" {ghost}/>
          </body>
        </body>
      </body>
    </body>"""


def _item_body(name: str, item: Item, slot: int) -> str:
    x, z = slot_centre_m(slot)
    half_height = item_height_m(item) / 2
    position = f"{x + item.offset_m[0]} {ITEM_Y_M + item.offset_m[1]} {z + half_height}"
    turn = f"{math.cos(item.yaw_rad / 2)} 0 0 {math.sin(item.yaw_rad / 2)}"
    width, depth = (item.scale * half for half in _HALF_M[item.kind])
    shape = (
        f'type="cylinder" size="{width} {half_height}"'
        if item.kind == "drum"
        else f'type="box" size="{width} {depth} {half_height}"'
    )
    return (
        f'<body name="{name}" pos="{position}" quat="{turn}"><freejoint/>'
        f'<geom {shape} mass="{ITEM_MASS_KG}" friction="0.8"/></body>'
    )


def half_width_m(item: Item) -> float:
    """Half of the space that an item takes along the shelf, its yaw included."""
    width, depth = (item.scale * half for half in _HALF_M[item.kind])
    if item.kind == "drum":
        return width
    return width * abs(math.cos(item.yaw_rad)) + depth * abs(math.sin(item.yaw_rad))
