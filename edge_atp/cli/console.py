"""The console of commands that print wide tables."""

from __future__ import annotations

from rich.console import Console

_FILE_WIDTH = 140


def table_console() -> Console:
    """The terminal as it is; files and pipes, which have no width, take wide tables whole."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _FILE_WIDTH)
    return console
