"""Plots of a summary: accuracy and grounding against budget, accuracy against latency,
robustness curves, reliability. Draws what is in the JSON and computes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_atp.evaluation.arms import BASELINES, DENSE
from edge_atp.evaluation.corruptions import CORRUPTIONS, SEVERITIES
from edge_atp.evaluation.figures import method_styles, new_figure, save

Arms = dict[str, dict[str, Any]]


def write_plots(summary: dict[str, Any], folder: Path) -> list[Path]:
    """Every plot the summary has numbers for; returns the files written.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    arms: Arms = summary["arms"]
    written = [
        _against_budget(arms, "exact", "exact match, %", folder / "accuracy_vs_tokens.png"),
        _against_latency(arms, folder / "accuracy_vs_latency.png"),
        _reliability(arms, folder / "reliability.png"),
    ]
    if any("grounding" in arm for arm in arms.values()):
        label = "target patches kept, %"
        written.append(_against_budget(arms, "grounding", label, folder / "grounding.png"))
    if summary["robustness"]:
        written.append(_robustness(summary, folder / "robustness.png"))
    return written


def curves(arms: Arms, what: str) -> dict[str, list[dict[str, Any]]]:
    """Per method, its arms that have the number ``what``, largest budget first.

    The dense arm ends every curve: keeping all tokens is the identity for every method.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name, arm in arms.items():
        if name != DENSE and what in arm:
            found.setdefault(name.rsplit("@", 1)[0], []).append(arm)
    dense = [arms[DENSE]] if DENSE in arms and what in arms[DENSE] else []
    return {
        method: [*dense, *sorted(points, key=lambda arm: -arm["num_kept"])]
        for method, points in found.items()
    }


def _against_budget(arms: Arms, what: str, label: str, path: Path) -> Path:
    figure = new_figure(8.4, 5.0)
    axes = figure.subplots()
    lines = curves(arms, what)
    styles = method_styles(list(lines))
    for number, (method, points) in enumerate(lines.items()):
        if not points[-1]["num_kept"]:  # it takes no budget, and has no place on the axis
            value, color = 100 * points[-1][what]["value"], styles[method]["color"]
            axes.axhline(value, label=f"{method} (no budget)", color=color, lw=1.2, ls="--")
            continue
        budgets = [point["num_kept"] for point in points]
        values = [100 * point[what]["value"] for point in points]
        axes.plot(budgets, values, label=method, markersize=5, **styles[method])
        if number == 0 or method in BASELINES:
            low = [100 * point[what]["low"] for point in points]
            high = [100 * point[what]["high"] for point in points]
            axes.fill_between(budgets, low, high, color=styles[method]["color"], alpha=0.15, lw=0)
    if DENSE in arms and what in arms[DENSE]:
        axes.axhline(100 * arms[DENSE][what]["value"], color="black", lw=0.8, ls=(0, (1, 2)))
    ticks = sorted({arm["num_kept"] for arm in arms.values()} - {0})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("visual tokens kept (all tokens: dense, dotted line)")
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    _legend_outside(figure, axes, "bands: 95 % interval")
    return save(figure, path)


def _against_latency(arms: Arms, path: Path) -> Path:
    figure = new_figure(8.4, 5.0)
    axes = figure.subplots()
    lines = curves(arms, "exact")
    styles = method_styles(list(lines))
    for method, points in lines.items():
        axes.plot(
            [point["latency_ms"]["p50"] for point in points[1:]],
            [100 * point["exact"]["value"] for point in points[1:]],
            label=method,
            markersize=5,
            **styles[method],
        )
    if DENSE in arms:
        dense = arms[DENSE]
        latency, value = dense["latency_ms"]["p50"], 100 * dense["exact"]["value"]
        axes.plot(latency, value, "k*", markersize=13, label="dense", zorder=6)
    _label_budgets(axes, next(iter(lines.values()), [])[1:])
    axes.set_xlabel("median latency of one answer, encoding included, ms")
    axes.set_ylabel("exact match, %")
    axes.grid(alpha=0.25)
    _legend_outside(figure, axes, "numbers: tokens kept")
    return save(figure, path)


def _label_budgets(axes: Any, points: list[dict[str, Any]]) -> None:
    for point in points:
        where = (point["latency_ms"]["p50"], 100 * point["exact"]["value"])
        offset = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
        axes.annotate(str(point["num_kept"] or ""), where, fontsize=8, **offset)


def _robustness(summary: dict[str, Any], path: Path) -> Path:
    """One panel per corruption, severity across, and one for reworded questions."""
    robustness: dict[str, dict[str, Any]] = summary["robustness"]
    corrupted = [c for c in CORRUPTIONS if f"{c}@1" in robustness]
    reworded = [condition for condition in robustness if "@" not in condition]
    panels = [*corrupted, *(["wording"] if reworded else [])]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(4.0 * columns, 3.1 * rows + 0.6)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    names = list(next(iter(robustness.values())))
    styles = method_styles([name.rsplit("@", 1)[0] for name in names])
    for axes, panel in zip(grid.flat, panels, strict=False):
        conditions = reworded if panel == "wording" else [f"{panel}@{s}" for s in SEVERITIES]
        for name in names:
            values = [100 * robustness[c][name]["exact"]["value"] for c in conditions]
            # Of the same questions: fewer images are disturbed than are asked clean.
            clean = values[0] - 100 * robustness[conditions[0]][name]["minus_clean"]["value"]
            axes.plot(
                range(len(conditions) + 1),
                [clean, *values],
                label=name,
                markersize=4,
                **styles[name.rsplit("@", 1)[0]],
            )
        labels = conditions if panel == "wording" else [str(s) for s in SEVERITIES]
        axes.set_xticks(range(len(conditions) + 1), ["clean", *labels], fontsize=9)
        axes.set_title(panel.replace("_", " "), fontsize=10)
        axes.grid(alpha=0.25)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    figure.supylabel("exact match, %")
    figure.supxlabel("severity")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(6, len(names)))
    return save(figure, path)


def _reliability(arms: Arms, path: Path) -> Path:
    """Accuracy against confidence: dense, and the first method at three of its budgets."""
    lines = curves(arms, "exact")
    points = next(iter(lines.values()), [arms[DENSE]] if DENSE in arms else [])
    middle = points[len(points) // 2 :][:1]
    shown = list({arm["name"]: arm for arm in [*points[:2], *middle, *points[-1:]]}.values())
    figure = new_figure(6.4, 5.0)
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="black", lw=0.8, ls=(0, (1, 2)))
    styles = method_styles([arm["name"] for arm in shown])
    for arm in shown:
        bins = arm["calibration"]
        if bins is None:
            continue
        dots = [
            (100 * confidence, 100 * accuracy)
            for confidence, accuracy in zip(bins["confidences"], bins["accuracies"], strict=True)
            if confidence is not None
        ]
        label = f"{arm['name']}, ECE {100 * bins['ece']:.1f} %"
        style = {**styles[arm["name"]], "linewidth": 1.4}
        axes.plot(*zip(*dots, strict=True), label=label, markersize=5, **style)
    axes.set(xlim=(0, 102), ylim=(0, 102))
    axes.set_xlabel("confidence of the answer (mean of its bin), %")
    axes.set_ylabel("exact match, %")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="upper left")
    return save(figure, path)


def _legend_outside(figure: Any, axes: Any, title: str) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside right upper", fontsize=9, title=title, title_fontsize=8
    )
