"""The simulated cell: physics of the arm and the items, and the scene state that a camera sees.

Deterministic: the same scene and the same commands at the same times give the same motion. Knows
nothing of ROS and draws nothing; ``models.warehouse_tiny.render`` draws ``CellSim.scene()``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.warehouse_tiny.render import import_mujoco
from models.warehouse_tiny.scene import (
    GRIPPER_HOME_M,
    SLOT_SIZE_M,
    slot_centre_m,
)
from models.warehouse_tiny.shapes import GRIP_TO_TOP_M, item_height_m
from models.warehouse_tiny.state import Clutter, Item, SceneState
from models.warehouse_tiny.vocabulary import NUM_SLOTS
from sim.cell_mjcf import FINGER_TRAVEL_M, ITEM_Y_M, JOINTS, TIMESTEP_S, build_cell
from sim.motion import Trajectory, waypoints

# The tool touches an item's top; the pictures' gripper point lies below it.
HOME_M = (GRIPPER_HOME_M[0], GRIPPER_HOME_M[1], GRIPPER_HOME_M[2] + GRIP_TO_TOP_M)
CAPTURE_M = 0.2  # how far beside an item's axis the fingers still close around it
CAPTURE_HEIGHT_M = 0.12
ARRIVED_M = 0.01
_BLOCKED_S = 2.0

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class JointState:
    """Of ``JOINTS``, in their order. position: m. velocity: m/s. effort: N."""

    position: tuple[float, ...]
    velocity: tuple[float, ...]
    effort: tuple[float, ...]


class CellSim:
    """Steps the cell.

    Args:
        scene: what stands where, and the look of it; its gripper must be empty.
    Raises:
        ValueError: the scene's gripper holds something.
    """

    def __init__(self, scene: SceneState) -> None:
        if scene.held is not None:
            raise ValueError(f"scene.held is {scene.held.name}; the cell starts with an empty hand")
        self._mujoco = mujoco = import_mujoco()
        self._scene = scene
        self._items: dict[str, Item] = {
            f"item{slot}": item for slot, item in enumerate(scene.slots) if item is not None
        }
        self._model = mujoco.MjModel.from_xml_string(build_cell(scene, self._items))
        self._data = mujoco.MjData(self._model)
        self._joints = [self._model.joint(name) for name in JOINTS]
        self._set_arm(np.array(HOME_M))
        self._trajectory = Trajectory(np.array(HOME_M), [np.array(HOME_M)], 0.0)
        self._held: str | None = None
        self._hazard = scene.hazard
        mujoco.mj_forward(self._model, self._data)

    # Commands --------------------------------------------------------------------------------

    def move_to(self, goal_m: Vector) -> None:
        """Take the tool to a world point, by a way that is clear of the rack.

        Raises:
            ValueError: the point is out of the arm's reach.
        """
        for joint, value in zip(self._joints[:3], goal_m, strict=True):
            low, high = joint.range
            if not low <= value <= high:
                raise ValueError(
                    f"goal {joint.name[-1]} is {value:.2f} m; the arm reaches {low:g} to {high:g} m"
                )
        tool = self.tool_m
        self._trajectory = Trajectory(tool, waypoints(tool, goal_m), self.time_s)

    def close_gripper(self) -> str | None:
        """Close; returns the name of the item that is now held, None for none."""
        self._data.ctrl[3] = FINGER_TRAVEL_M
        if self._held is None and (body := self._within_reach()) is not None:
            self._weld(body)
        return self.held_name

    def open_gripper(self) -> None:
        """Open; a held item is let go."""
        self._data.ctrl[3] = 0.0
        if self._held is not None:
            self._data.eq_active[self._model.equality(f"grip_{self._held}").id] = 0
            self._held = None

    def set_hazard(self, hazard: str | None) -> None:
        """Put something on the floor, or clear it.

        Raises:
            ValueError: an unknown hazard.
        """
        replace(self._scene, hazard=hazard)  # validates
        self._hazard = hazard

    def advance(self, seconds: float) -> None:
        """Step the physics."""
        for _ in range(round(seconds / TIMESTEP_S)):
            self._data.ctrl[:3] = self._trajectory.at(self.time_s)
            self._mujoco.mj_step(self._model, self._data)

    # State -----------------------------------------------------------------------------------

    @property
    def time_s(self) -> float:
        """Simulated seconds since the start."""
        return float(self._data.time)

    @property
    def tool_m(self) -> Vector:
        """(3,) the tool in the world."""
        return np.array([float(self._data.qpos[j.qposadr[0]]) for j in self._joints[:3]])

    @property
    def held_name(self) -> str | None:
        """What the gripper holds."""
        return self._items[self._held].name if self._held else None

    @property
    def arrived(self) -> bool:
        """Whether the tool rests at its goal."""
        speed = max(abs(v) for v in self.joints().velocity[:3])
        distance = np.linalg.norm(self.tool_m - self._trajectory.goal_m)
        return self.time_s >= self._trajectory.end_s and distance < ARRIVED_M and speed < 0.02

    @property
    def blocked(self) -> bool:
        """Whether the tool should have arrived long ago."""
        return self.time_s > self._trajectory.end_s + _BLOCKED_S and not self.arrived

    def joints(self) -> JointState:
        """Measured state of the arm."""
        data = self._data
        return JointState(
            position=tuple(float(data.qpos[j.qposadr[0]]) for j in self._joints),
            velocity=tuple(float(data.qvel[j.dofadr[0]]) for j in self._joints),
            effort=tuple(float(force) for force in data.actuator_force),
        )

    def slot_of(self, body: str) -> int | None:
        """The slot that an item stands in, None if it is held, in the air or has fallen down."""
        if body == self._held:
            return None
        x, _, z = self._data.body(body).xpos
        bottom = z - item_height_m(self._items[body]) / 2
        for slot in range(NUM_SLOTS):
            slot_x, slot_z = slot_centre_m(slot)
            if abs(x - slot_x) <= SLOT_SIZE_M / 2 and abs(bottom - slot_z) < 0.1:
                return slot
        return None

    def contents(self) -> tuple[str | None, ...]:
        """Names of what stands in each slot: the ground truth."""
        names: list[str | None] = [None] * NUM_SLOTS
        for body, item in self._items.items():
            if (slot := self.slot_of(body)) is not None:
                names[slot] = item.name
        return tuple(names)

    def scene(self) -> SceneState:
        """What a camera sees now. What stands in no slot is drawn as a plain block."""
        slots: list[Item | None] = [None] * NUM_SLOTS
        loose: list[Clutter] = []
        gripper = self.tool_m
        gripper[2] -= GRIP_TO_TOP_M
        held = None
        for body, item in self._items.items():
            position = self._data.body(body).xpos
            seen = replace(item, yaw_rad=self._yaw(body))
            slot = self.slot_of(body)
            if body == self._held:
                held = seen
                gripper[2] = position[2] + item_height_m(item) / 2 - GRIP_TO_TOP_M
            elif slot is not None and slots[slot] is None:
                x, _ = slot_centre_m(slot)
                offset = (float(position[0] - x), float(position[1] - ITEM_Y_M))
                slots[slot] = replace(seen, offset_m=offset)
            else:
                half = item_height_m(item) / 2
                centre = (float(position[0]), float(position[1]), float(position[2]))
                loose.append(Clutter(centre, (0.3, 0.3, half), item.rgb))
        clutter = (*loose, *self._scene.look.clutter)[:9]
        return replace(
            self._scene,
            slots=tuple(slots),
            held=held,
            hazard=self._hazard,
            gripper_m=(float(gripper[0]), float(gripper[1]), float(gripper[2])),
            look=replace(self._scene.look, clutter=clutter),
        )

    # Inside ----------------------------------------------------------------------------------

    def _set_arm(self, tool_m: Vector) -> None:
        for joint, value in zip(self._joints[:3], tool_m, strict=True):
            self._data.qpos[joint.qposadr[0]] = value
        self._data.ctrl[:3] = tool_m

    def _within_reach(self) -> str | None:
        """The nearest item whose top the fingers can close around."""
        tool, reachable = self.tool_m, {}
        for body, item in self._items.items():
            x, y, z = self._data.body(body).xpos
            beside = float(np.hypot(x - tool[0], y - tool[1]))
            above = tool[2] - (z + item_height_m(item) / 2)
            if beside <= CAPTURE_M and abs(above) <= CAPTURE_HEIGHT_M:
                reachable[body] = beside
        return min(reachable, key=lambda body: reachable[body]) if reachable else None

    def _weld(self, body: str) -> None:
        """Hold an item: centred between the fingers, at the height at which it was met."""
        equality = self._model.equality(f"grip_{body}").id
        height = float(self._data.body(body).xpos[2] - self.tool_m[2])
        yaw = self._yaw(body)
        relative = [0.0, 0.0, height, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]
        self._model.eq_data[equality, 0:3] = 0.0
        self._model.eq_data[equality, 3:10] = relative
        self._data.eq_active[equality] = 1
        self._held = body

    def _yaw(self, body: str) -> float:
        w, x, y, z = self._data.body(body).xquat
        return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))
