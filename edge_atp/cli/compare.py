"""Show what pruning methods keep of an image: a method per column, a budget per row.

examples:
  edge-atp compare cell.jpg "where is the red box?"
  edge-atp compare cell.jpg "where is the red box?" --methods atp,cls_topk,random --keep 64,32,16

writes one picture with kept count, answer, time and agreement with the dense answer, and prints
the same as a table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge_atp.cli.arguments import add_model, add_seed, parse_integers, parse_names
from edge_atp.cli.ask import read_image
from edge_atp.cli.console import engine_line, table_console
from edge_atp.config import PipelineConfig
from edge_atp.errors import ConfigError
from edge_atp.evaluation.arms import split_methods
from edge_atp.evaluation.comparison import Cell, check_sheet, compare, write_sheet
from edge_atp.pipeline import Pipeline
from edge_atp.runtime.find_model import find_model
from edge_atp.runtime.manifest import FILE_NAME, read_manifest
from edge_atp.types import Frame

_PICTURES = (".png", ".jpg", ".pdf", ".svg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``edge-atp compare``."""
    parser.add_argument("image", type=Path, help="image file (JPEG, PNG, ...)")
    parser.add_argument("question", help="what to ask about it")
    add_model(parser)
    parser.add_argument(
        "--methods", default="all", metavar="A,B", help="default: all that the model can run"
    )
    parser.add_argument(
        "--keep", default="128,64,32,16", metavar="K,K", help="visual tokens (default %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("compare.png"), metavar="FILE", help="picture to write"
    )
    add_seed(parser)


def run(args: argparse.Namespace) -> int:
    """Compare, write the sheet, print the table."""
    console = table_console()
    frame = Frame(read_image(args.image), frame_id=args.image.name)
    keeps = parse_integers(args.keep, "--keep")
    if args.out.suffix.lower() not in _PICTURES:
        raise ConfigError(f"--out {args.out}: use a name ending in {', '.join(_PICTURES)}")
    manifest = read_manifest(find_model(args.model, args.engine).path / FILE_NAME)
    if args.methods == "all":
        methods, refused = split_methods(manifest)
        for method, reason in refused.items():
            console.print(f"[dim]left out {method}: {escape(reason)}[/dim]")
    else:
        methods = parse_names(args.methods, "--methods")
    check_sheet(methods, keeps, manifest)
    pipeline = Pipeline.load(
        PipelineConfig(
            model=args.model, engine=args.engine, num_threads=args.threads, seed=args.seed
        )
    )
    try:
        dense, rows = compare(pipeline, frame, args.question, methods, keeps)
    finally:
        pipeline.close()
    write_sheet(dense, rows, args.question, args.out)
    _print(console, dense, rows)
    console.print(f"[dim]{escape(engine_line(pipeline.engine))}[/dim]")
    console.print(f"[dim]sheet: {args.out}[/dim]")
    return 0


def _print(console: Console, dense: Cell, rows: list[list[Cell]]) -> None:
    table = Table(box=SIMPLE_HEAD)
    for name in ("method", "kept", "answer", "ms", "as dense"):
        table.add_column(name, justify="right" if name in ("kept", "ms") else "left")
    for cell in [dense, *(cell for row in rows for cell in row)]:
        table.add_row(
            cell.arm.method,
            str(cell.answer.tokens.visual_kept),
            escape(cell.answer.text),
            f"{1e3 * cell.seconds:.1f}",
            "yes" if cell.agrees else "[red]no[/red]",
        )
    console.print(table)
