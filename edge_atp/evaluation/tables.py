"""A summary as tables in the terminal. Prints what is in the JSON and computes nothing."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge_atp.evaluation.arms import DENSE

Arms = dict[str, dict[str, Any]]
_METHOD_COLUMN, _VALUE_COLUMN = 18, 13


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Print accuracy, grounding, families, paired differences and robustness."""
    arms: Arms = summary["arms"]
    if not arms:
        console.print("no question was answered; nothing to show")
        return
    console.print(
        f"{summary['num_questions']} questions about {summary['num_images']} images;"
        f" 95 % intervals from {summary['bootstrap']['draws']} draws of images"
    )
    titles = {
        "exact": "exact match, short answers, %",
        "token_f1": "token F1, long answers, %",
        "grounding": "share of the target's patches kept, %",
    }
    for what, title in titles.items():
        if any(what in arm for arm in arms.values()):
            console.print(_by_budget(arms, what, title, console.width))
    console.print(_details(arms))
    console.print(_families(arms))
    if summary["paired"]:
        console.print(_paired(summary["paired"], first=_first_method(arms)))
    if summary.get("minus_baseline"):
        console.print(_baseline(summary["minus_baseline"]))
    if summary["robustness"]:
        console.print(_robustness(summary["robustness"]))


def _by_budget(arms: Arms, what: str, title: str, width: int) -> Table:
    """Methods down, budgets across; half-widths of the intervals where the terminal is wide."""
    budgets = sorted({arm["num_kept"] for arm in arms.values()}, reverse=True)
    narrow = _METHOD_COLUMN + _VALUE_COLUMN * len(budgets) > width
    if narrow:
        title += " (intervals: a wider terminal, or summary.json)"
    table = _table("method", *map(_budget, budgets), title=title)
    rows: dict[str, dict[int, str]] = {}
    for arm in arms.values():
        method = arm["name"].rsplit("@", 1)[0]
        rows.setdefault(method, {})[arm["num_kept"]] = _value(arm.get(what), narrow)
    for method, cells in rows.items():
        table.add_row(escape(method), *(cells.get(budget, "") for budget in budgets))
    return table


def _budget(num_kept: int) -> str:
    """Heading of a column; 0 is a method that takes no budget."""
    return str(num_kept) if num_kept else "own"


def _details(arms: Arms) -> Table:
    table = _table(
        "arm",
        "- dense, points",
        "as dense, %",
        "ECE, %",
        "p50, ms",
        "p95, ms",
        title="against dense, agreement with dense, calibration, latency",
    )
    for name, arm in arms.items():
        calibration = arm["calibration"]
        table.add_row(
            escape(name),
            "" if name == DENSE else _interval(arm.get("minus_dense")),
            _value(arm.get("agreement")),
            f"{100 * calibration['ece']:.1f}" if calibration else "",
            f"{arm['latency_ms']['p50']:.1f}",
            f"{arm['latency_ms']['p95']:.1f}",
        )
    return table


def _families(arms: Arms) -> Table:
    """Families down; dense and the first method's budgets across."""
    first = _first_method(arms)
    shown = [n for n, arm in arms.items() if n == DENSE or arm["method"] == first]
    families = arms[shown[0]]["families"]
    budgets = [_budget(arms[name]["num_kept"]) for name in shown]
    table = _table("family", "n", *budgets, title=f"by family, %: dense, then {first}")
    for family, entry in families.items():
        cells = [f"{100 * arms[name]['families'][family]['value']:.1f}" for name in shown]
        table.add_row(family, str(entry["count"]), *cells)
    return table


def _paired(paired: dict[str, dict[str, Any]], first: str) -> Table:
    title = "paired differences at one budget, exact match, points"
    table = _table("pair", "difference", "p", title=title)
    for pair, entry in paired.items():
        if pair.startswith((f"{first}@", f"{first}[")):
            table.add_row(escape(pair), _interval(entry), f"{entry['p_value']:.4f}")
    return table


def _baseline(differences: dict[str, dict[str, Any]]) -> Table:
    table = _table("arm", "difference", "p", title="minus the baseline, exact match, points")
    for name, entry in differences.items():
        table.add_row(escape(name), _interval(entry), f"{entry['p_value']:.4f}")
    return table


def _robustness(robustness: dict[str, dict[str, Any]]) -> Table:
    arms = list(next(iter(robustness.values())))
    title = "exact match under disturbance, % (and points lost or won)"
    table = _table("condition", *map(escape, arms), title=title)
    for condition, entries in robustness.items():
        cells = [
            f"{100 * entries[a]['exact']['value']:.1f}"
            f" ({100 * entries[a]['minus_clean']['value']:+.1f})"
            for a in arms
        ]
        table.add_row(condition, *cells)
    return table


def _first_method(arms: Arms) -> str:
    return next((str(arm["method"]) for name, arm in arms.items() if name != DENSE), DENSE)


def _table(*columns: str, title: str) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def _value(entry: dict[str, Any] | None, narrow: bool = False) -> str:
    if entry is None:
        return ""
    half = 50 * (entry["high"] - entry["low"])
    return f"{100 * entry['value']:.1f}" + ("" if narrow else f" ±{half:.1f}")


def _interval(entry: dict[str, Any] | None) -> str:
    """A signed difference with its interval, in points."""
    if entry is None:
        return ""
    # Adding 0.0 turns a negative zero into zero.
    value, low, high = (100 * entry[key] + 0.0 for key in ("value", "low", "high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
