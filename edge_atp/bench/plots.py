"""Pictures of a benchmark: latency against kept tokens, accuracy against latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_atp.bench.hugging_face import NAME as HUGGING_FACE
from edge_atp.evaluation.arms import DENSE
from edge_atp.evaluation.figures import method_styles, new_figure, save

Contenders = dict[str, dict[str, Any]]
_DECADE = 10.0  # times further apart than this need a logarithmic axis


def write_plots(report: dict[str, Any], folder: Path) -> list[Path]:
    """Every plot the report has numbers for; returns the files written.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    results = report["results"]
    if not results:
        return []
    written = [_latency(report, folder / "latency_vs_tokens.png")]
    exact = report.get("accuracy", {}).get("exact", {})
    if exact and "short" in results:
        written.append(
            _accuracy(report, results["short"]["contenders"], exact, folder / "accuracy.png")
        )
    return written


def curves(contenders: Contenders) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Per method its contenders, fewest tokens first; dense ends every curve."""
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, row in contenders.items():
        if name not in (DENSE, HUGGING_FACE):
            found.setdefault(name.rsplit("@", 1)[0], []).append((name, row))
    dense = [(DENSE, contenders[DENSE])] if DENSE in contenders else []
    return {
        method: [*sorted(rows, key=lambda row: row[1]["visual_kept"]), *dense]
        for method, rows in (found or {DENSE: []}).items()
    }


def _latency(report: dict[str, Any], path: Path) -> Path:
    results = report["results"]
    figure = new_figure(4.4 * len(results) + 1.6, 4.6)
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    clock, name = _clock(report)
    for axes, (kind, entry) in zip(panels, results.items(), strict=True):
        contenders: Contenders = entry["contenders"]
        lines = curves(contenders)
        styles = method_styles(list(lines))
        for method, rows in lines.items():
            kept = [row["visual_kept"] for _, row in rows]
            middle = [row[clock]["median"] for _, row in rows]
            axes.plot(kept, middle, label=method, markersize=5, **styles[method])
            low = [row[clock]["q25"] for _, row in rows]
            high = [row[clock]["q75"] for _, row in rows]
            axes.fill_between(kept, low, high, color=styles[method]["color"], alpha=0.15, lw=0)
        if HUGGING_FACE in contenders:
            level = contenders[HUGGING_FACE][clock]["median"]
            axes.axhline(level, color="#A50026", lw=1.0, ls="--", label=f"{HUGGING_FACE}, dense")
        text = next(iter(contenders.values()))["text_tokens"]
        axes.set_title(f"{kind}, {text:g} text tokens", fontsize=10)
        axes.set_xlabel("visual tokens kept")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
    panels[0].set_ylabel(f"one answer, ms of {name} (bands: quartiles)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=9)
    figure.suptitle(_where(report), fontsize=9)
    return save(figure, path)


def _accuracy(
    report: dict[str, Any], contenders: Contenders, exact: dict[str, Any], path: Path
) -> Path:
    figure = new_figure(7.4, 4.8)
    axes = figure.subplots()
    lines = curves(contenders)
    styles = method_styles(list(lines))
    clock, name = _clock(report)
    for method, rows in lines.items():
        points = [(row, exact[arm]) for arm, row in rows if arm in exact]
        times = [row[clock]["median"] for row, _ in points]
        values = [100 * value["value"] for _, value in points]
        errors = [
            [100 * (value["value"] - value["low"]) for _, value in points],
            [100 * (value["high"] - value["value"]) for _, value in points],
        ]
        axes.errorbar(times, values, errors, label=method, capsize=2, **styles[method])
        for (row, _), time_ms, value in zip(points, times, values, strict=True):
            place = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
            axes.annotate(str(row["visual_kept"]), (time_ms, value), fontsize=8, **place)
    axes.set_xlabel(f"one short answer, ms of {name} (median); numbers: tokens kept")
    axes.set_ylabel("exact match, % (bars: 95 % interval)")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=9)
    axes.set_title(_where(report), fontsize=9)
    return save(figure, path)


def write_projection(report: dict[str, Any], path: Path) -> Path:
    """Projected latency against kept tokens, a line a device; labelled as projected.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    devices = report["results"]
    kinds = list(next(iter(devices.values())))
    figure = new_figure(4.4 * len(kinds) + 2.2, 4.6)
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    styles = method_styles(list(devices))
    for axes, kind in zip(panels, kinds, strict=True):
        for name, results in devices.items():
            contenders = {arm: {**row, "name": arm} for arm, row in results[kind].items()}
            for number, rows in enumerate(curves(contenders).values()):
                kept = [row["visual_kept"] for _, row in rows]
                times = [row["total_ms"] for _, row in rows]
                label = report["devices"][name]["title"] if number == 0 else None
                axes.plot(kept, times, label=label, markersize=5, **styles[name])
        row = next(iter(results[kind].values()))
        text, answer = row["text_tokens"], row["answer_tokens"]
        axes.set_title(f"{kind}: {text} text tokens, {answer} generated", fontsize=10)
        axes.set_xlabel("visual tokens kept")
        axes.grid(alpha=0.25, which="both")
        times = [row["total_ms"] for found in devices.values() for row in found[kind].values()]
        if max(times) > _DECADE * min(times):
            axes.set_yscale("log")
        else:
            axes.set_ylim(0, 1.1 * max(times))
        axes.text(
            *(0.5, 0.5, "PROJECTED"),
            transform=axes.transAxes,
            fontsize=30,
            color="#999999",
            alpha=0.35,
            ha="center",
            va="center",
            rotation=25,
        )
    panels[0].set_ylabel("one answer, ms")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=9)
    model = report["model"]
    figure.suptitle(f"{model['model_id']}, {model['precision']}: {report['label']}", fontsize=9)
    return save(figure, path)


def _clock(report: dict[str, Any]) -> tuple[str, str]:
    """What to draw, and its name: on a busy machine wall time tells about its neighbours."""
    if report["machine"]["is_busy"]:
        return "cpu_ms", "CPU time, as the machine was busy"
    return "wall_ms", "wall time"


def _where(report: dict[str, Any]) -> str:
    machine, model = report["machine"], report["model"]
    name = machine["board"] or machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    return f"{model['model_id']} {model['precision']}, {model['backend']}, measured on {name}"
