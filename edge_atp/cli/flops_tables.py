"""Prints what ``edge-atp flops`` computed: one text length in detail, or shares at several.

A table that is wider than the terminal leaves out its least telling columns, or goes on below; a
file or a pipe takes it whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.measure import Measurement
from rich.table import Table

from edge_atp.flops import ModelSpec, Row
from edge_atp.runtime.in_llm import takes_budget

_DENSE = "none"
_ROOMY = 10_000
# Left out one by one, in this order, until the table fits.
_DISPENSABLE = ("text tower", "selection", "projector", "mean in LLM", "decode", "KV cache", "ViT")


class _Column(NamedTuple):
    """name and unit stand above one another; cell: of a row."""

    name: str
    unit: str
    cell: Callable[[Row], str]


def print_details(console: Console, model: ModelSpec, rows: Sequence[Row], about: str) -> None:
    """Every part of one question's FLOPs, at one length of text.

    Args:
        rows: dense first.
        about: the assumptions besides model and text, in words.
    """
    text = rows[0].text_tokens
    console.print(
        f"[bold]{model.name}[/bold]: {model.visual_tokens} visual tokens, {text} text tokens,"
        f" {about}; FLOPs of one question"
    )
    columns = _columns(model, rows[0])
    shown = _details(columns, rows)
    for name in _DISPENSABLE:
        if _fits(console, shown):
            break
        columns = [column for column in columns if column.name != name]
        shown = _details(columns, rows)
    console.print(shown)
    console.print(
        f"total: until the first token. of dense: total over the dense model's, both with {text}"
        " tokens of text." + _footnotes(rows, [column.name for column in columns]),
        style="dim",
    )


def print_shares(
    console: Console, model: ModelSpec, tables: Sequence[Sequence[Row]], convention: str
) -> None:
    """What is left of the dense model's FLOPs at each length of text.

    Args:
        tables: the same methods and budgets, one table a length; dense first.
    """
    console.print(
        f"[bold]{model.name}[/bold]: {model.visual_tokens} visual tokens, convention {convention};"
        " FLOPs in % of the dense model's with as much text\n"
    )
    for title, share, whole in (
        ("LLM prefill alone", "relative_prefill", "prefill"),
        ("Everything until the first token", "relative", "total"),
    ):
        rest = list(tables)
        while rest:
            count = len(rest)
            while count > 1 and not _fits(console, _shares(rest[:count], share, whole)):
                count -= 1
            console.print(title)
            console.print(_shares(rest[:count], share, whole))
            rest = rest[count:]
    if notes := _footnotes(tables[0], ()):
        console.print(notes.strip(), style="dim")


def _columns(model: ModelSpec, dense: Row) -> list[_Column]:
    scale, unit = _unit(dense.total)

    def flops(name: str, field: str) -> _Column:
        get = attrgetter(field)
        return _Column(name, unit, lambda row: _number(scale * get(row)))

    return [
        _Column("method", "", _method),
        _Column("kept", "tokens", lambda row: _kept(row, model.visual_tokens)),
        _Column("mean in LLM", "tokens", lambda row: f"{row.mean_visual:.0f}"),
        flops("ViT", "vision"),
        flops("projector", "projector"),
        flops("text tower", "text_tower"),
        flops("selection", "selection"),
        flops("prefill", "prefill"),
        flops("total", "total"),
        _Column("of dense", f"% at {dense.text_tokens} text", lambda row: _share(row.relative)),
        flops("decode", "decode"),
        _Column("KV cache", "MB", lambda row: f"{row.kv_cache_mb:.1f}"),
    ]


def _details(columns: Sequence[_Column], rows: Sequence[Row]) -> Table:
    shown = _table([(column.name, column.unit) for column in columns])
    for section in _sections(rows):
        for row in section:
            shown.add_row(*(column.cell(row) for column in columns))
        shown.add_section()
    return shown


def _shares(tables: Sequence[Sequence[Row]], share: str, whole: str) -> Table:
    """One column a length; above them what 100 % are."""
    scale, unit = _unit(min(getattr(rows[0], whole) for rows in tables))
    lengths = [(f"{rows[0].text_tokens} text", "%") for rows in tables]
    shown = _table([("method", ""), ("kept", "tokens"), *lengths])
    totals = (_number(scale * getattr(rows[0], whole)) for rows in tables)
    shown.add_row(f"dense, {unit}", "all", *totals)
    for sections in zip(*map(_sections, tables), strict=True):
        for lines in zip(*sections, strict=True):
            if lines[0].method != _DENSE:
                cells = (_share(getattr(row, share)) for row in lines)
                shown.add_row(lines[0].method, _kept(lines[0], 0), *cells)
        shown.add_section()
    return shown


def _table(names: Sequence[tuple[str, str]]) -> Table:
    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name, unit in names:
        justify: JustifyMethod = "left" if name == "method" else "right"
        shown.add_column(f"{name}\n{unit}", justify=justify, no_wrap=True)
    return shown


def _fits(console: Console, shown: Table) -> bool:
    # Measured where there is room: rich never measures more than it is given.
    roomy = console.options.update(width=_ROOMY)
    return Measurement.get(console, roomy, shown).maximum <= console.width


def _sections(rows: Sequence[Row]) -> list[list[Row]]:
    """Dense with what takes no budget (each once), then every budget with its methods."""
    sections: dict[int | None, list[Row]] = {}
    free: dict[str, Row] = {}
    for row in rows[1:]:
        if takes_budget(row.method):
            sections.setdefault(row.kept, []).append(row)
        else:
            free.setdefault(row.method, row)
    return [[rows[0], *free.values()], *sections.values()]


def _footnotes(rows: Sequence[Row], columns: Sequence[str]) -> str:
    notes = ""
    if "decode" in columns:
        notes += " decode: the tokens behind the first."
    if free := sorted({row.method for row in rows[1:] if not takes_budget(row.method)}):
        notes += f" {', '.join(free)} takes no budget."
    return notes


def _method(row: Row) -> str:
    return "dense" if row.method == _DENSE else row.method


def _kept(row: Row, visual_tokens: int) -> str:
    if row.method == _DENSE:
        return str(visual_tokens)
    return str(row.kept) if takes_budget(row.method) else "-"


def _unit(tera_flops: float) -> tuple[float, str]:
    """What to multiply FLOPs in units of 1e12 with, and the unit then."""
    return (1.0, "TFLOPs") if tera_flops >= 0.1 else (1e3, "GFLOPs")


def _share(relative: float) -> str:
    return f"{100 * relative:.1f}"


def _number(value: float) -> str:
    """Three decimals; a dash for nothing at all, which is not the same as little."""
    if value == 0.0:
        return "-"
    return f"{value:.3f}" if value >= 0.0005 else "<0.001"
