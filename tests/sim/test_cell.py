"""The cell's physics: what the arm can do, what it cannot, and that it does it twice alike."""

from __future__ import annotations

import numpy as np
import pytest

from models.warehouse_tiny.scene import slot_centre_m
from models.warehouse_tiny.shapes import GRIP_TO_TOP_M, item_height_m
from models.warehouse_tiny.state import Item, SceneState
from sim.cell import HOME_M, CellSim
from sim.cell_mjcf import ITEM_Y_M, JOINTS
from sim.orders import cell_scene

PICK, PLACE = 9, 0  # bottom shelf, slot 2 -> top shelf, slot 1


def scene(kind: str = "drum", **fields) -> SceneState:
    slots: list[Item | None] = [None] * 12
    slots[PICK] = Item(kind, "red", yaw_rad=0.2)
    slots[PLACE + 1] = Item("tote", "blue")
    return SceneState(slots=tuple(slots), **fields)


def above(slot: int, height_m: float) -> np.ndarray:
    x, z = slot_centre_m(slot)
    return np.array([x, ITEM_Y_M, z + height_m])


def go(cell: CellSim, goal_m) -> bool:
    cell.move_to(np.asarray(goal_m))
    while not cell.arrived and not cell.blocked:
        cell.advance(0.1)
    return cell.arrived


@pytest.mark.parametrize("kind", ["box", "drum", "tote"])
def test_it_picks_and_places(kind):
    cell = CellSim(scene(kind))
    height = item_height_m(Item(kind, "red"))
    name = f"red {kind}"
    assert cell.contents()[PICK] == name

    assert go(cell, above(PICK, height + 0.05))  # planners know the height only roughly
    assert cell.close_gripper() == name
    assert go(cell, HOME_M)
    held = cell.scene()
    assert held.held.name == name
    assert held.gripper_m == pytest.approx(
        (HOME_M[0], HOME_M[1], HOME_M[2] - 0.05 - GRIP_TO_TOP_M), abs=0.02
    )
    assert cell.contents().count(None) == 11
    assert go(cell, above(PLACE, height + 0.06))
    cell.open_gripper()
    cell.advance(0.3)
    assert go(cell, HOME_M)

    assert cell.contents()[PLACE] == name
    assert cell.contents()[PLACE + 1] == "blue tote"
    seen = cell.scene().slots[PLACE]
    assert np.abs(seen.offset_m).max() < 0.02
    assert seen.yaw_rad == pytest.approx(0.2, abs=0.05)
    assert cell.held_name is None


def test_the_same_commands_give_the_same_motion_bit_for_bit():
    def run() -> list[float]:
        cell = CellSim(cell_scene("test", 3))
        cell.move_to(above(2, 0.7))
        cell.advance(3.0)
        cell.close_gripper()
        cell.move_to(np.array(HOME_M))
        cell.advance(2.0)
        return [*cell.joints().position, *cell.joints().effort, *cell.tool_m]

    assert run() == run()


def test_a_gripper_that_closes_on_nothing_holds_nothing():
    cell = CellSim(scene())
    assert cell.close_gripper() is None
    assert go(cell, above(PICK, 0.3))  # far below the drum's top
    assert cell.close_gripper() is None
    assert go(cell, above(PICK, 0.8) + np.array([0.3, 0.0, 0.0]))  # beside it
    assert cell.close_gripper() is None


def test_an_item_let_go_in_the_air_falls_and_stands_in_no_slot():
    cell = CellSim(scene())
    go(cell, above(PICK, 0.8))
    cell.close_gripper()
    go(cell, HOME_M)
    cell.open_gripper()
    cell.advance(2.0)

    assert "red drum" not in cell.contents()
    seen = cell.scene()
    assert seen.held is None
    assert seen.look.clutter[0].rgb == scene().slots[PICK].rgb  # drawn as a block on the floor
    assert seen.look.clutter[0].position_m[2] < 1.0


def test_an_item_does_not_pass_through_another():
    cell = CellSim(scene("box"))
    go(cell, above(PICK, 0.62))
    cell.close_gripper()
    go(cell, above(PLACE + 1, 0.63))  # where the tote stands
    tote = cell._data.body(f"item{PLACE + 1}").xpos
    box = cell._data.body(f"item{PICK}").xpos
    assert np.abs(box - tote).max() > 0.3


def test_joints_say_where_the_tool_is():
    cell = CellSim(scene())
    go(cell, above(PICK, 1.0))
    state = cell.joints()
    assert len(state.position) == len(state.velocity) == len(state.effort) == len(JOINTS)
    assert state.position[:3] == pytest.approx(tuple(cell.tool_m))
    assert max(map(abs, state.velocity)) < 0.02
    cell.close_gripper()
    cell.advance(0.5)
    assert cell.joints().position[3] == pytest.approx(0.05, abs=0.01)


def test_what_cannot_be_is_refused():
    cell = CellSim(scene())
    with pytest.raises(ValueError, match=r"goal x is 9\.00 m; the arm reaches"):
        cell.move_to(np.array([9.0, 0.0, 2.0]))
    with pytest.raises(ValueError, match="hazard is 'lion'"):
        cell.set_hazard("lion")
    with pytest.raises(ValueError, match="starts with an empty hand"):
        CellSim(scene(held=Item("box", "red")))
    cell.set_hazard("person")
    assert cell.scene().hazard == "person"
