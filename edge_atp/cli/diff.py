"""Compare two results of `edge-atp replay` (or recordings of the live node): did anything change?

examples:
  edge-atp diff reference.mcap result.mcap
  edge-atp diff reference.mcap result.mcap --tolerance-mask 0.97      # another CPU or backend
  edge-atp diff fast.mcap slow.mcap --tolerance-latency 1.2           # made with --timings

Answers are paired by topic, question and frame. exit status: 0 equal within the tolerance, 1 not,
2 a bag could not be read.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge_atp.cli.arguments import add_json
from edge_atp.cli.console import table_console
from edge_atp.replay.comparison import Comparison, Tolerance, compare
from edge_atp.replay.interfaces import load_typestore
from edge_atp.replay.results import load_results

_EXIT_CHANGED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``edge-atp diff``."""
    parser.add_argument("before", type=Path, help="the reference: rosbag2 folder, .mcap or .db3")
    parser.add_argument("after", type=Path, help="the result to judge")
    parser.add_argument(
        "--tolerance-mask",
        type=float,
        default=1.0,
        metavar="J",
        help="least overlap (Jaccard) of two masks, [0, 1] (default %(default)s: equal)",
    )
    parser.add_argument(
        "--tolerance-latency",
        type=float,
        metavar="R",
        help="a question's median latency may grow by this factor; default: any",
    )
    parser.add_argument(
        "--paired-only",
        action="store_true",
        help="accept answers that only one side has (a live recording drops frames)",
    )
    parser.add_argument(
        "--limit", type=int, default=50, metavar="N", help="rows printed (default %(default)s)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Compare, print what differs, exit with 1 if anything does."""
    tolerance = Tolerance(args.tolerance_mask, args.tolerance_latency, args.paired_only)
    typestore = load_typestore()
    before, after = (load_results(path, typestore) for path in (args.before, args.after))
    comparison = compare(before, after, tolerance)
    if args.json:
        print(json.dumps(asdict(comparison), ensure_ascii=False))
    else:
        _print(table_console(), comparison, args.limit)
    return _EXIT_CHANGED if comparison.differences else 0


def _print(console: Console, comparison: Comparison, limit: int) -> None:
    if comparison.differences:
        _print_differences(console, comparison, limit)
    if comparison.latencies:
        _print_latencies(console, comparison)
    for note in comparison.notes:
        console.print(f"[yellow]note: {escape(note)}[/yellow]")
    console.print(
        f"{comparison.num_paired} answers compared ({comparison.num_before} before,"
        f" {comparison.num_after} after)"
    )
    if comparison.overlaps:
        changed = sum(overlap < 1.0 for overlap in comparison.overlaps)
        console.print(
            f"{len(comparison.overlaps)} masks compared, {changed} not identical, least overlap"
            f" {min(comparison.overlaps):.3f}"
        )
    counts = Counter(difference.kind for difference in comparison.differences)
    summary = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    console.print(
        f"[red]differs: {summary}[/red]" if counts else "[green]equal within tolerance[/green]"
    )


def _print_differences(console: Console, comparison: Comparison, limit: int) -> None:
    table = Table(box=SIMPLE_HEAD)
    for name in ("frame stamp", "question", "", "before", "after"):
        # What was said may take several lines; what to look it up by may not.
        table.add_column(name, no_wrap=name not in ("before", "after"))
    for difference in comparison.differences[:limit]:
        stamp_ns = difference.stamp_ns
        stamp = "" if stamp_ns is None else f"{stamp_ns // 10**9}.{stamp_ns % 10**9:09d}"
        cells = (difference.query_id, difference.kind, difference.before, difference.after)
        table.add_row(stamp, *map(escape, cells))
    console.print(table)
    if (more := len(comparison.differences) - limit) > 0:
        console.print(f"[dim]and {more} more (--limit)[/dim]")


def _print_latencies(console: Console, comparison: Comparison) -> None:
    table = Table(box=SIMPLE_HEAD)
    for name in ("question", "before, median ms", "after", "ratio"):
        table.add_column(name, justify="left" if name == "question" else "right")
    for change in comparison.latencies:
        table.add_row(
            escape(change.query_id),
            f"{1e3 * change.before_s:.1f}",
            f"{1e3 * change.after_s:.1f}",
            f"{change.after_s / change.before_s:.2f}",
        )
    console.print(table)
