"""What the pictures of a report share: the plotting library, colours, saving.

Matplotlib comes with the extra ``evaluation``; without it reports are tables and JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_atp.errors import ConfigError

# Okabe and Ito's palette, which colour-blind readers can tell apart, then four more.
_PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#8A6D00", "#6A3D9A", "#A50026", "#1B7837", "#4D4D4D", "#F781BF"),
)
_MARKERS = "osD^vP*X<>hd"
_DOTS_PER_INCH = 130

# These keep one look in every picture: the unpruned model and what each method has to beat.
_FIXED = {
    "dense": {"color": "#000000", "linestyle": "-", "marker": "*"},
    "random": {"color": "#777777", "linestyle": "--", "marker": "x"},
    "spatial": {"color": "#777777", "linestyle": ":", "marker": "+"},
}


def new_figure(width: float, height: float) -> Any:
    """An empty figure, size in inches.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "plots need matplotlib: pip install 'edge-atp[evaluation]', or give --no-plots"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def method_styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Line style of each method: the first stands out, dense is black, baselines are grey."""
    styles: dict[str, dict[str, Any]] = {}
    others = [method for method in methods if method not in _FIXED]
    for number, method in enumerate(others):
        styles[method] = {
            "color": _PALETTE[number % len(_PALETTE)],
            "marker": _MARKERS[number % len(_MARKERS)],
            "linestyle": "-" if number < len(_PALETTE) else "-.",
            "linewidth": 2.4 if number == 0 else 1.3,
            "zorder": 5 if number == 0 else 3,
        }
    for method in methods:
        if method in _FIXED:
            styles[method] = {**_FIXED[method], "linewidth": 1.6, "zorder": 4}
    return styles


def save(figure: Any, path: Path) -> Path:
    """Write a figure as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DOTS_PER_INCH)
    return path


def printable(text: str) -> str:
    """Text as a label draws it literally: a dollar sign would begin mathematics, and control
    characters, which a broken model answers in, are in no font."""
    shown = (letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return "".join(shown).replace("$", r"\$")
