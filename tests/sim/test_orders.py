from __future__ import annotations

import pytest
from edge_atp_ros.orders import parse_order

from models.warehouse_tiny.state import Camera
from sim.cell import CellSim
from sim.orders import carried_out, cell_scene, possible_orders, shelf_contents

SHELVES = ("top", "middle", "bottom")


@pytest.mark.parametrize("seed", range(8))
def test_every_order_can_be_carried_out_in_turn(seed):
    scene = cell_scene("test", seed)
    names = [item.name if item else None for item in scene.slots]
    orders = possible_orders(scene, seed, 4)

    assert orders == possible_orders(cell_scene("test", seed), seed, 4)
    assert orders
    for order in orders:
        assert names.count(str(order.item)) == 1
        assert str(order.item) not in shelf_contents(names, order.shelf)
        assert None in shelf_contents(names, order.shelf)
        assert parse_order(str(order), SHELVES) == order
        names = carried_out(names, order)
        assert str(order.item) in shelf_contents(names, order.shelf)


@pytest.mark.parametrize("seed", range(4))
def test_a_scene_stands_still_by_itself(seed):
    """No two items overlap at the start: physics would throw them about."""
    scene = cell_scene("test", seed)
    assert scene.held is None
    assert scene.look.camera == Camera()
    cell = CellSim(scene)
    cell.advance(1.0)
    settled = cell.scene()
    assert cell.contents() == tuple(item and item.name for item in scene.slots)
    for before, after in zip(scene.slots, settled.slots, strict=True):
        if before:
            assert after.offset_m == pytest.approx(before.offset_m, abs=0.01)


def test_a_hazard_is_put_on_the_floor():
    assert cell_scene("test", 1, "cone").hazard == "cone"
    with pytest.raises(ValueError, match="hazard is 'lion'"):
        cell_scene("test", 1, "lion")
