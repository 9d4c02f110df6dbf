"""The one MuJoCo model that every scene is rendered from.

All geoms stand in the world body and are placed, sized, coloured and hidden through arrays, so a
scene costs no compilation. Generic geoms (``item{i}_{k}``, ``hazard{k}``, ``clutter{k}``) get
their shape when a state is drawn.
"""

from __future__ import annotations

from models.warehouse_tiny.scene import LOWEST_BOARD_M, RACK_CENTRE_X_M, slot_centre_m
from models.warehouse_tiny.vocabulary import NUM_SLOTS

TEXTURE_SIZE = 64
GEOMS_PER_ITEM = 5
NUM_HAZARD_GEOMS = 8
NUM_CLUTTER = 9
NUM_ARM_GEOMS = 6


def build_mjcf() -> str:
    """MJCF text of the warehouse cell."""
    geoms = [
        '<geom name="floor" type="plane" size="12 12 1" material="floor"/>',
        '<geom name="wall" type="box" size="12 0.05 6" pos="0 3 6" material="wall"/>',
        *_rack(),
    ]
    for item in range(NUM_SLOTS + 1):
        geoms += [_generic(f"item{item}_{part}") for part in range(GEOMS_PER_ITEM)]
    geoms += [_generic(f"arm{part}") for part in range(NUM_ARM_GEOMS)]
    geoms += [_generic(f"hazard{part}") for part in range(NUM_HAZARD_GEOMS)]
    geoms += [_generic(f"clutter{part}") for part in range(NUM_CLUTTER)]
    textures = "".join(
        f'<texture name="{name}" type="2d" builtin="flat" rgb1="1 1 1" '
        f'width="{TEXTURE_SIZE}" height="{TEXTURE_SIZE}"/>'
        f'<material name="{name}" texture="{name}" texrepeat="{repeat}" texuniform="true" '
        'specular="0.1"/>'
        for name, repeat in (("floor", "0.5 0.5"), ("wall", "0.4 0.4"))
    )
    return f"""
<mujoco model="warehouse_cell">
  <visual>
    <global offwidth="640" offheight="480"/>
    <quality offsamples="0" shadowsize="512"/>
    <map znear="0.05" zfar="4" shadowclip="1"/>
    <headlight ambient="0.3 0.3 0.3" diffuse="0.2 0.2 0.2" specular="0 0 0"/>
  </visual>
  <statistic center="0 0 2" extent="8"/>
  <asset>{textures}</asset>
  <worldbody>
    <light name="key" pos="0 -6 8" dir="0 0.6 -0.8" cutoff="70" exponent="1" castshadow="true"/>
    {"".join(geoms)}
  </worldbody>
</mujoco>"""


def _generic(name: str) -> str:
    return f'<geom name="{name}" type="box" size="0.1 0.1 0.1" group="5"/>'


def _rack() -> list[str]:
    """Posts, boards and one back panel for each slot, so an empty slot has its own region."""
    geoms = []
    top = LOWEST_BOARD_M + 3.0
    for post in range(5):
        x = RACK_CENTRE_X_M + (post - 2) * 1.0
        for side, y in (("front", -0.46), ("back", 0.46)):
            geoms.append(
                f'<geom name="post_{side}{post}" type="box" size="0.035 0.035 {top / 2}" '
                f'pos="{x} {y} {top / 2}"/>'
            )
    for board in range(4):
        z = LOWEST_BOARD_M + board
        geoms.append(
            f'<geom name="board{board}" type="box" size="2.04 0.5 0.04" '
            f'pos="{RACK_CENTRE_X_M} 0 {z - 0.04}"/>'
        )
    for slot in range(NUM_SLOTS):
        x, z = slot_centre_m(slot)
        geoms.append(
            f'<geom name="panel{slot}" type="box" size="0.47 0.02 0.46" pos="{x} 0.48 {z + 0.46}"/>'
        )
    return geoms
