"""Command line: ``python -m export tensorrt DIR``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from edge_atp.errors import EdgeAtpError
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.runtime.profiles import is_executed
from export.tensorrt.recipe import build_engines
from export.tensorrt.support import PARSERS, lint

_console = Console(stderr=True)


def main(arguments: list[str] | None = None) -> int:
    """Build the engines, or only check the graphs; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        directory = ModelDirectory.open(options.directory)
        if options.check:
            return _check(directory)
        built = build_engines(
            directory,
            workspace_bytes=options.workspace_mb << 20,
            optimization_level=options.level,
            log=_console.log,
        )
    except (EdgeAtpError, OSError) as error:
        _console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        return 1
    for engine in built.manifest.engines:
        _console.print(f"{engine.file}: TensorRT {engine.tensorrt_version}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export tensorrt",
        description="Build TensorRT engines for this device from a model directory.",
    )
    parser.add_argument("directory", type=Path, help="exported with --dialect prim18 or prim17")
    parser.add_argument("--workspace-mb", type=int, default=512, help="scratch memory of a layer")
    parser.add_argument("--level", type=int, default=3, choices=range(6), help="0 fast build")
    parser.add_argument(
        "--check", action="store_true", help="only compare the graphs with what parsers support"
    )
    return parser


def _check(directory: ModelDirectory) -> int:
    table = Table("graph", *(f"TensorRT {parser.name}" for parser in PARSERS))
    problems = 0
    for graph in directory.manifest.graphs:
        if not is_executed(graph.role):
            continue
        cells = []
        for parser in PARSERS:
            found = sorted({f.problem for f in lint(directory.path / graph.file, parser)})
            problems += len(found)
            cells.append("; ".join(found) or "ok")
        table.add_row(graph.role, *cells)
    _console.print(table)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
