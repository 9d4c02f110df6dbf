"""Prints what ``edge-atp flops`` computed: one text length in detail, or shares at several.

A table that is wider than the terminal leaves out its least telling columns, or goes on below; a
file or a pipe takes it whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from edge_atp.bench.fitted import fits, fitted
from edge_atp.flops import ModelSpec, Row
from edge_atp.runtime.in_llm import takes_budget

_DENSE = "none"
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
    heads = [f"{column.name}\n{column.unit}" for column in columns]
    cells = [[[c.cell(row) for c in columns] for row in section] for section in _sections(rows)]
    console.print(fitted(console, heads, cells, _DISPENSABLE))
    console.print(
        f"total: until the first token. of dense: total over the dense model's, both with {text}"
        f" tokens of text. decode: the tokens behind the first.{_footnote(rows)}",
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
            while not fits(console, shown := _shares(console, rest[:count], share, whole)):
                if count == 1:
                    break
                count -= 1
            console.print(title)
            console.print(shown)
            rest = rest[count:]
    if note := _footnote(tables[0]):
        console.print(note.strip(), style="dim")


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


def _shares(console: Console, tables: Sequence[Sequence[Row]], share: str, whole: str) -> Table:
    """One column a length; above them what 100 % are."""
    scale, unit = _unit(min(getattr(rows[0], whole) for rows in tables))
    heads = ["method\n", "kept\ntokens", *(f"{rows[0].text_tokens} text\n%" for rows in tables)]
    totals = (_number(scale * getattr(rows[0], whole)) for rows in tables)
    cells = [
        [
            [_method(lines[0]), _kept(lines[0], 0), *(_share(getattr(r, share)) for r in lines)]
            for lines in zip(*sections, strict=True)
        ]
        for sections in zip(*map(_sections, tables), strict=True)
    ]
    # Of itself the dense model is all: what that is says more.
    cells[0][0] = [f"dense, {unit}", "all", *totals]
    return fitted(console, heads, cells)


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


def _footnote(rows: Sequence[Row]) -> str:
    free = sorted({row.method for row in rows[1:] if not takes_budget(row.method)})
    return f" {', '.join(free)} takes no budget." if free else ""


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
