"""The plot that justifies a model's defaults: exact match against alpha, a panel per budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_atp.evaluation.figures import method_styles, new_figure, save


def write_defaults_plot(result: dict[str, Any], path: Path) -> Path:
    """Draw a result of ``defaults.sweep_defaults``.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    budgets = result["budgets"]
    columns = min(4, len(budgets))
    rows = -(-len(budgets) // columns)
    figure = new_figure(3.1 * columns + 0.6, 2.7 * rows + 0.9)
    grid = figure.subplots(rows, columns, sharey=True, sharex=True, squeeze=False)
    labels = list(dict.fromkeys(c["label"] for c in result["candidates"]))
    styles = method_styles(labels)
    for axes, budget in zip(grid.flat, budgets, strict=False):
        for label in labels:
            points = [c for c in result["candidates"] if c["label"] == label]
            exact = [c["exact"][str(budget)] for c in points]
            alphas = [c["alpha"] for c in points]
            style = {**styles[label], "linewidth": 1.6}
            values = [100 * e["value"] for e in exact]
            axes.plot(alphas, values, label=label, markersize=4, **style)
            low, high = [100 * e["low"] for e in exact], [100 * e["high"] for e in exact]
            axes.fill_between(alphas, low, high, color=style["color"], alpha=0.13, lw=0)
        axes.axhline(100 * result["dense"]["value"], color="black", lw=0.8, ls=(0, (1, 2)))
        axes.axvline(result["chosen"]["alpha"], color="black", lw=0.8, alpha=0.5)
        axes.set_title(f"{budget} of {result['num_patches']} tokens", fontsize=10)
        axes.grid(alpha=0.25)
    for axes in grid.flat[len(budgets) :]:
        axes.set_visible(False)
    figure.supxlabel("alpha (weight of the question); vertical line: chosen", fontsize=10)
    figure.supylabel("exact match, %; dotted: dense", fontsize=10)
    handles, names = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(4, len(names)), fontsize=9)
    return save(figure, path)
