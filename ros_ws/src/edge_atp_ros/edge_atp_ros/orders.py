"""An order to a pick-and-place planner, as text and as a value. No ROS."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edge_atp.errors import ConfigError
from edge_atp_ros.answer_text import Item, parse_item

_ORDER = re.compile(r"move the (?P<item>\w+ \w+) to the (?P<shelf>\w+) shelf", re.IGNORECASE)


@dataclass(frozen=True)
class Order:
    """Move an item to a free slot of a shelf."""

    item: Item
    shelf: str

    def __str__(self) -> str:
        return f"move the {self.item} to the {self.shelf} shelf"


def parse_order(text: str, shelves: tuple[str, ...]) -> Order:
    """`move the red box to the top shelf` -> Order.

    Raises:
        ConfigError: worded otherwise, or an unknown item or shelf.
    """
    match = _ORDER.fullmatch(text.strip().rstrip("."))
    item = parse_item(match["item"]) if match else None
    if match is None or item is None or match["shelf"].lower() not in shelves:
        raise ConfigError(
            f"order is {text!r}; it must read: move the COLOUR KIND to the SHELF shelf, with"
            f" SHELF one of {', '.join(shelves)}"
        )
    return Order(item, match["shelf"].lower())
