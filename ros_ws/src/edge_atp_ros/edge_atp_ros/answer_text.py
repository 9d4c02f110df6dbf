"""What an answer of the warehouse model means to a planner. Pure functions, no ROS."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SHELVES = ("top", "middle", "bottom")
_PLACE = re.compile(rf"(?P<shelf>{'|'.join(_SHELVES)}) shelf, slot (?P<slot>[1-4])")
_ITEM = re.compile(r"(?P<colour>red|yellow|green|cyan|blue|purple) (?P<kind>box|drum|tote)")
_HAZARDS = ("person", "cone", "pallet")
_WHERE = re.compile(rf"where is the (?P<item>{_ITEM.pattern})\?", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """A place on the rack; slots count from 1, from the left."""

    shelf: str
    slot: int

    def __str__(self) -> str:
        return f"{self.shelf} shelf, slot {self.slot}"


@dataclass(frozen=True)
class Item:
    """One handled object."""

    colour: str
    kind: str

    def __str__(self) -> str:
        return f"{self.colour} {self.kind}"


def parse_place(answer: str) -> Place | None:
    """`middle shelf, slot 3` -> Place; None for anything else, such as `not found`."""
    match = _PLACE.fullmatch(answer.strip().lower())
    return Place(match["shelf"], int(match["slot"])) if match else None


def parse_item(answer: str) -> Item | None:
    """`red box` -> Item; None for anything else, such as `empty`."""
    match = _ITEM.fullmatch(answer.strip().lower())
    return Item(match["colour"], match["kind"]) if match else None


def parse_hazard(answer: str) -> str | None:
    """The hazard that an answer names, None for `none` and anything else."""
    text = answer.strip().lower()
    return text if text in _HAZARDS else None


def item_asked_for(question: str) -> Item | None:
    """The item in `Where is the red box?`; None for other questions."""
    match = _WHERE.fullmatch(question.strip())
    return parse_item(match["item"]) if match else None


def parse_slots(answer: str) -> tuple[int, ...]:
    """`1, 3` -> (1, 3): the free slots of a shelf; () for `none` and anything else."""
    numbers = [part.strip() for part in answer.split(",")]
    return tuple(int(n) for n in numbers) if all(n in ("1", "2", "3", "4") for n in numbers) else ()
