"""Tables on terminals of different widths."""

import io

import pytest
from rich.console import Console

from edge_atp.bench.fitted import fits, fitted

HEADS = ("method\n", "kept\ntokens", "fine\nms", "total\nms")
SECTIONS = [[["dense", "256", "1.5", "10.25"]], [["atp", "64", "0.5", "7.125"]]]


def shown(width):
    console = Console(file=io.StringIO(), width=width)
    table = fitted(console, HEADS, SECTIONS, ("fine", "kept"))
    console.print(table)
    text = console.file.getvalue()
    return console, table, [line.split() for line in text.splitlines()], text


@pytest.mark.parametrize(
    ("width", "head", "units"),
    [
        (80, ["method", "kept", "fine", "total"], ["tokens", "ms", "ms"]),
        (27, ["method", "kept", "total"], ["tokens", "ms"]),
        (18, ["method", "total"], ["ms"]),
    ],
)
def test_columns_go_one_by_one(width, head, units):
    console, table, lines, text = shown(width)
    assert fits(console, table)
    assert max(map(len, text.splitlines())) <= width
    assert (lines[1], lines[2]) == (head, units)
    dense, between, atp = lines[4:7]
    assert (dense[0], dense[-1]) == ("dense", "10.25")
    assert between == []  # parts the sections
    assert (atp[0], atp[-1]) == ("atp", "7.125")


def test_what_nothing_can_be_left_out_of_does_not_fit():
    console, table, *_ = shown(10)
    assert not fits(console, table)
    assert [column.header for column in table.columns] == ["method\n", "total\nms"]
