"""True statements about a state that a question can ask for, before any wording.

A fact is only drawn when the picture shows enough of what it is about: an item needs 1.4 patches
of visible area, an empty slot 1.5 patches of its back panel. Facts about absence or totals need
every place concerned to be visible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from models.warehouse_tiny import vocabulary as v
from models.warehouse_tiny.state import Item, SceneState

MIN_ITEM_PATCHES = 1.4
MIN_PANEL_PATCHES = 1.5
MIN_GRIPPER_PATCHES = 0.3
NOT_FOUND = "not found"
ORDINALS = ("first", "second", "third", "fourth")


@dataclass(frozen=True)
class Fact:
    """family; exact answer; entity ids it is about; fields that the wording fills in."""

    family: str
    answer: str
    entities: tuple[int, ...] = ()
    fields: dict[str, str] = field(default_factory=dict)


class SceneView:
    """A state together with what the picture shows of it."""

    def __init__(self, state: SceneState, coverage: np.ndarray) -> None:
        """coverage: (NUM_ENTITIES, 256) share of each patch that an entity covers."""
        area = coverage.sum(axis=1)
        self.state = state
        self.visible = [
            bool(area[v.FIRST_ITEM + s] >= MIN_ITEM_PATCHES)
            if state.slots[s] is not None
            else bool(area[v.FIRST_PANEL + s] >= MIN_PANEL_PATCHES)
            for s in range(v.NUM_SLOTS)
        ]
        self.all_visible = all(self.visible)
        if state.held is not None:
            self.held_visible = bool(area[v.HELD_ITEM] >= MIN_ITEM_PATCHES)
        else:
            self.held_visible = bool(area[v.GRIPPER] >= MIN_GRIPPER_PATCHES)
        self.hazard_visible = state.hazard is None or bool(area[v.HAZARD] >= MIN_ITEM_PATCHES)

    def items(self) -> Iterator[tuple[int, Item]]:
        """(slot, item) of every filled slot."""
        return ((s, item) for s, item in enumerate(self.state.slots) if item is not None)

    def shelf_slots(self, shelf: int) -> range:
        """Slot indices of one shelf."""
        return range(shelf * v.NUM_COLUMNS, (shelf + 1) * v.NUM_COLUMNS)

    def region(self, slot: int) -> int:
        """Entity that shows a slot: its item, or the panel of an empty one."""
        filled = self.state.slots[slot] is not None
        return (v.FIRST_ITEM if filled else v.FIRST_PANEL) + slot


def _pick(rng: np.random.Generator, options: list):  # type: ignore[no-untyped-def,type-arg]
    return options[rng.integers(len(options))] if options else None


def _matches(item: Item, colour: str | None, kind: str | None) -> bool:
    return (colour is None or item.colour == colour) and (kind is None or item.kind == kind)


def _thing(colour: str | None, kind: str | None, rng: np.random.Generator) -> dict[str, str]:
    """Wording of a description: colour, type, or both."""
    noun = kind or ("object", "item", "thing")[rng.integers(3)]
    plural = {"box": "boxes"}.get(noun, noun + "s")
    prefix = f"{colour} " if colour else ""
    return {"thing": prefix + noun, "things": prefix + plural}


def _description(rng: np.random.Generator, item: Item, pair_share: float) -> tuple:  # type: ignore[type-arg]
    """(colour, kind) that fits the item; one of them may be left open."""
    draw = rng.random()
    if draw < pair_share:
        return item.colour, item.kind
    return (item.colour, None) if draw < pair_share + 0.75 * (1 - pair_share) else (None, item.kind)


def _place_fields(slot: int) -> dict[str, str]:
    shelf, column = divmod(slot, v.NUM_COLUMNS)
    return {"shelf": v.SHELVES[shelf], "n": str(column + 1), "nth": ORDINALS[column]}


def _exist_on(
    view: SceneView, rng: np.random.Generator, pair_share: float, slots: range, family: str
) -> Fact | None:
    """Yes or no for a description on the given slots, near misses preferred for no."""
    present = [(s, i) for s, i in view.items() if s in slots]
    shelf = {"shelf": v.SHELVES[slots[0] // v.NUM_COLUMNS]}
    if rng.random() < 0.5:
        choice = _pick(rng, [i for s, i in present if view.visible[s]])
        if choice is None:
            return None
        colour, kind = _description(rng, choice, pair_share)
        found = tuple(v.FIRST_ITEM + s for s, i in present if _matches(i, colour, kind))
        return Fact(family, "yes", found, _thing(colour, kind, rng) | shelf)
    if not all(view.visible[s] for s in slots):
        return None
    everywhere = [i for _, i in view.items()]
    for _ in range(8):
        near = _pick(rng, everywhere) if rng.random() < 0.6 else None
        probe = Item(
            near.kind if near and rng.random() < 0.5 else v.KINDS[rng.integers(3)],
            near.colour if near and rng.random() < 0.5 else v.COLOURS[rng.integers(6)],
        )
        colour, kind = _description(rng, probe, pair_share)
        held = view.state.held
        ambiguous = held is not None and _matches(held, colour, kind)
        if not ambiguous and not any(_matches(i, colour, kind) for _, i in present):
            return Fact(family, "no", (), _thing(colour, kind, rng) | shelf)
    return None


def _exist(view: SceneView, rng: np.random.Generator, pair_share: float) -> Fact | None:
    return _exist_on(view, rng, pair_share, range(v.NUM_SLOTS), "exist")


def _exist_shelf(view: SceneView, rng: np.random.Generator, pair_share: float) -> Fact | None:
    return _exist_on(view, rng, pair_share, view.shelf_slots(int(rng.integers(3))), "exist_shelf")


def _colour(view: SceneView, rng: np.random.Generator, _pair_share: float) -> Fact | None:
    slot = _pick(rng, [s for s, _ in view.items() if view.visible[s]])
    if slot is None:
        return None
    answer = view.state.slots[slot].colour  # type: ignore[union-attr]
    return Fact("colour", answer, (view.region(slot),), _place_fields(slot))


def _what(view: SceneView, rng: np.random.Generator, _pair_share: float) -> Fact | None:
    want_item = rng.random() < 0.8
    slots = [s for s in range(v.NUM_SLOTS) if view.visible[s]]
    slot = _pick(rng, [s for s in slots if (view.state.slots[s] is not None) == want_item])
    if slot is None:
        return None
    item = view.state.slots[slot]
    answer = item.name if item else "empty"
    return Fact("what", answer, (view.region(slot),), _place_fields(slot))


def _where(view: SceneView, rng: np.random.Generator, pair_share: float) -> Fact | None:
    """Place of a uniquely described item; sometimes of one that is not there."""
    state = view.state
    everything = [(v.FIRST_ITEM + s, i) for s, i in view.items()]
    if state.held is not None:
        everything.append((v.HELD_ITEM, state.held))
    if not (view.all_visible and view.held_visible) or not everything:
        return None
    if rng.random() < 0.08:
        probe = Item(v.KINDS[rng.integers(3)], v.COLOURS[rng.integers(6)])
        if any(_matches(i, probe.colour, probe.kind) for _, i in everything):
            return None
        return Fact("where", NOT_FOUND, (), _thing(probe.colour, probe.kind, rng))
    for _ in range(8):
        entity, item = everything[rng.integers(len(everything))]
        colour_name, kind = _description(rng, item, pair_share)
        if sum(_matches(i, colour_name, kind) for _, i in everything) == 1:
            held = entity == v.HELD_ITEM
            answer = "gripper" if held else v.slot_name(entity - v.FIRST_ITEM)
            return Fact("where", answer, (entity,), _thing(colour_name, kind, rng))
    return None


def _count_all(view: SceneView, _rng: np.random.Generator, _pair_share: float) -> Fact | None:
    if not view.all_visible:
        return None
    found = tuple(v.FIRST_ITEM + s for s, _ in view.items())
    return Fact("count_all", str(len(found)), found)


def _count_shelf(view: SceneView, rng: np.random.Generator, _pair_share: float) -> Fact | None:
    shelf = int(rng.integers(3))
    slots = view.shelf_slots(shelf)
    if not all(view.visible[s] for s in slots):
        return None
    number = sum(view.state.slots[s] is not None for s in slots)
    region = tuple(view.region(s) for s in slots)
    return Fact("count_shelf", str(number), region, {"shelf": v.SHELVES[shelf]})


def _count_colour(view: SceneView, rng: np.random.Generator, _pair_share: float) -> Fact | None:
    if not view.all_visible:
        return None
    present = [i.colour for _, i in view.items()]
    name = _pick(rng, present) if rng.random() < 0.8 else v.COLOURS[rng.integers(6)]
    if name is None:
        return None
    found = tuple(v.FIRST_ITEM + s for s, i in view.items() if i.colour == name)
    return Fact("count_colour", str(len(found)), found, {"colour": name})


def _gripper(view: SceneView, _rng: np.random.Generator, _pair_share: float) -> Fact | None:
    if not view.held_visible:
        return None
    held = view.state.held
    entity = v.HELD_ITEM if held else v.GRIPPER
    return Fact("gripper", held.name if held else "nothing", (entity,))


def _gripper_colour(view: SceneView, _rng: np.random.Generator, _pair_share: float) -> Fact | None:
    held = view.state.held
    if held is None or not view.held_visible:
        return None
    return Fact("gripper_colour", held.colour, (v.HELD_ITEM,))


def _empty(view: SceneView, rng: np.random.Generator, _pair_share: float) -> Fact | None:
    want_empty = rng.random() < 0.5
    slots = [s for s in range(v.NUM_SLOTS) if view.visible[s]]
    slot = _pick(rng, [s for s in slots if (view.state.slots[s] is None) == want_empty])
    if slot is None:
        return None
    answer = "yes" if want_empty else "no"
    return Fact("empty", answer, (view.region(slot),), _place_fields(slot))


def _free(view: SceneView, rng: np.random.Generator, _pair_share: float) -> Fact | None:
    shelf = int(rng.integers(3))
    slots = view.shelf_slots(shelf)
    if not all(view.visible[s] for s in slots):
        return None
    open_slots = [str(k + 1) for k, s in enumerate(slots) if view.state.slots[s] is None]
    region = tuple(view.region(s) for s in slots)
    return Fact("free", ", ".join(open_slots) or "none", region, {"shelf": v.SHELVES[shelf]})


def _hazard(view: SceneView, _rng: np.random.Generator, _pair_share: float) -> Fact | None:
    if not view.hazard_visible:
        return None
    kind = view.state.hazard
    return Fact("hazard", kind or "none", (v.HAZARD,) if kind else ())


def _caption(view: SceneView, _rng: np.random.Generator, _pair_share: float) -> Fact | None:
    if not (view.all_visible and view.held_visible and view.hazard_visible):
        return None
    state = view.state
    shelves = []
    for shelf, name in enumerate(v.SHELVES):
        held = [state.slots[s] for s in view.shelf_slots(shelf)]
        shelves.append(f"{name} shelf: " + ", ".join(i.name if i else "empty" for i in held))
    shelves.append(f"gripper: {state.held.name if state.held else 'nothing'}")
    shelves.append(f"floor: {state.hazard or 'none'}")
    found = [v.FIRST_ITEM + s for s, _ in view.items()]
    found += [v.HELD_ITEM] if state.held else []
    found += [v.HAZARD] if state.hazard else []
    return Fact("caption", "; ".join(shelves) + ".", tuple(found))


DrawFact = Callable[[SceneView, np.random.Generator, float], "Fact | None"]

FAMILIES: dict[str, DrawFact] = {
    "exist": _exist,
    "exist_shelf": _exist_shelf,
    "colour": _colour,
    "what": _what,
    "where": _where,
    "count_all": _count_all,
    "count_shelf": _count_shelf,
    "count_colour": _count_colour,
    "gripper": _gripper,
    "gripper_colour": _gripper_colour,
    "empty": _empty,
    "free": _free,
    "hazard": _hazard,
    "caption": _caption,
}
