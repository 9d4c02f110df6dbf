"""Tables that leave out columns, not digits, where a terminal is narrow."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.measure import Measurement
from rich.table import Table

_ROOMY = 10_000


def fitted(
    console: Console,
    columns: Sequence[str],
    sections: Sequence[Sequence[Sequence[str]]],
    dispensable: Sequence[str] = (),
) -> Table:
    """A table no wider than the console, if leaving out ``dispensable`` is enough.

    Args:
        columns: heads; what follows a line break (the unit) stands below. The first is flush left.
        sections: rows of cells, one per column; an empty line parts the sections.
        dispensable: heads to leave out one by one, the first ones first, until the rest fits. What
            a head says behind the line break is not compared.
    """
    shown = list(range(len(columns)))
    names = [column.partition("\n")[0] for column in columns]
    table = _table(columns, sections, shown)
    for name in dispensable:
        if fits(console, table):
            break
        shown = [index for index in shown if names[index] != name]
        table = _table(columns, sections, shown)
    return table


def fits(console: Console, table: Table) -> bool:
    """Whether the console shows it whole."""
    # Measured where there is room: rich never measures more than it is given.
    roomy = console.options.update(width=_ROOMY)
    return Measurement.get(console, roomy, table).maximum <= console.width


def _table(
    columns: Sequence[str], sections: Sequence[Sequence[Sequence[str]]], shown: Sequence[int]
) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index in shown:
        justify: JustifyMethod = "right" if index else "left"
        table.add_column(columns[index], justify=justify, no_wrap=True)
    for section in sections:
        for row in section:
            table.add_row(*(row[index] for index in shown))
        table.add_section()
    return table
