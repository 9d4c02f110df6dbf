"""The console of commands that print wide tables, and the line that says what answered."""

from __future__ import annotations

from rich.console import Console

from edge_atp.runtime.engine import Engine

_FILE_WIDTH = 140


def table_console() -> Console:
    """The terminal as it is; files and pipes, which have no width, take wide tables whole."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _FILE_WIDTH)
    return console


def engine_line(engine: Engine) -> str:
    """Which model in which precision ran on which backend; ``edge-atp info`` prints the reasons."""
    manifest = engine.directory.manifest
    return (
        f"{manifest.model_id}, {manifest.precision.compute} on {engine.backend}"
        " (`edge-atp info` says why)"
    )
