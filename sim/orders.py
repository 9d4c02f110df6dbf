"""Scenes for the cell, and orders that can be carried out in them. Deterministic by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from edge_atp_ros.answer_text import parse_item
from edge_atp_ros.orders import Order

from models.warehouse_tiny.scene import sample_item, sample_scene, scene_rng
from models.warehouse_tiny.state import Camera, Item, SceneState
from models.warehouse_tiny.vocabulary import NUM_COLUMNS, NUM_SLOTS, SHELVES
from sim.cell_mjcf import half_width_m

_STREAM = 11  # of the scene's random numbers; the generator's own streams are 0, 1 and 5
_CLEAR_M = 0.47  # of half a slot: what is left beside the posts
_FEWEST_ITEMS, _FEWEST_FREE = 4, 4


def cell_scene(split: str, seed: int, hazard: str = "") -> SceneState:
    """The scene of (split, seed) as the cell needs it: empty hand, fixed camera, room to work.

    Args:
        split: whose ranges of light, texture and colour are used.
        seed: picks the scene.
        hazard: what is on the floor; "" for nothing.
    Raises:
        ValueError: an unknown split or hazard.
    """
    rng = scene_rng(split, seed, stream=_STREAM)
    state = sample_scene(split, seed)
    slots = list(state.slots)
    while sum(item is not None for item in slots) < _FEWEST_ITEMS:
        free = [slot for slot, item in enumerate(slots) if item is None]
        slots[int(rng.choice(free))] = sample_item(rng, split == "shifted")
    while sum(item is None for item in slots) < _FEWEST_FREE:
        full = [slot for slot, item in enumerate(slots) if item is not None]
        slots[int(rng.choice(full))] = None
    return replace(
        state,
        slots=tuple(item and _within_slot(item) for item in slots),
        held=None,
        hazard=hazard or None,
        look=replace(state.look, camera=Camera()),
    )


def possible_orders(state: SceneState, seed: int, number: int) -> list[Order]:
    """Orders for unique items, each to another shelf with a free slot; as many as there are."""
    rng = np.random.default_rng([seed, _STREAM])
    names = [item.name if item else None for item in state.slots]
    orders: list[Order] = []
    for slot in rng.permutation(NUM_SLOTS):
        name, own = names[slot], SHELVES[slot // NUM_COLUMNS]
        if name is None or names.count(name) > 1 or any(str(o.item) == name for o in orders):
            continue
        shelves = [s for s in SHELVES if s != own and None in shelf_contents(names, s)]
        parsed = parse_item(name)
        if parsed and shelves and len(orders) < number:
            orders.append(Order(parsed, str(rng.choice(shelves))))
            names = carried_out(names, orders[-1])
    return orders


def shelf_contents(names: Sequence[str | None], shelf: str) -> list[str | None]:
    """What stands in the slots of a shelf, from the left."""
    first = SHELVES.index(shelf) * NUM_COLUMNS
    return list(names[first : first + NUM_COLUMNS])


def carried_out(names: Sequence[str | None], order: Order) -> list[str | None]:
    """The slots after an order; which free slot of the shelf is taken does not matter."""
    after = [None if name == str(order.item) else name for name in names]
    first = SHELVES.index(order.shelf) * NUM_COLUMNS
    after[first + shelf_contents(after, order.shelf).index(None)] = str(order.item)
    return after


def _within_slot(item: Item) -> Item:
    """The same item, turned and shifted no further than its slot has room."""
    if item.kind == "tote":
        item = replace(item, yaw_rad=float(np.clip(item.yaw_rad, -0.08, 0.08)))
    room = max(_CLEAR_M - half_width_m(item), 0.0)
    return replace(item, offset_m=(float(np.clip(item.offset_m[0], -room, room)), 0.0))
