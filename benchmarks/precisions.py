"""Which precision is best? Accuracy, size and time of one checkpoint exported in each of them.

Every precision is exported with its gates; one that fails them is exported again without, so that
its numbers can be seen, and is marked. Accuracy is exact match on a labelled set, dense and at the
model's default share of patches. Time is process CPU time per question (one thread, the frame
encoded anew), medians over questions; all directories take turns on each question, so that a busy
machine disturbs all alike. Needs the `export` extra; without --labels also `model`.

Run: ``python -m benchmarks.precisions --out DIR [--scenes 150] [--json OUT]``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from edge_atp.config import PipelineConfig
from edge_atp.errors import ArtifactError
from edge_atp.evaluation.dataset import LabelledDataset
from edge_atp.pipeline import Pipeline
from edge_atp.types import Frame, Policy, PruneSpec, Query
from export.accuracy import measure_accuracy
from export.recipe import export_model
from export.settings import ExportSettings, read_settings

# A precision, and the dialect it is written in where that is not the default one.
DEFAULT = (
    "fp32",
    "fp16",
    "int8",
    "int8-weights",
    "int4-weights",
    "int8@prim18",
    "int4-weights@std24",
)
# More than this share of the answers lost, and a precision is not shipped.
_MAX_DROP = 0.01
_TIMED_QUESTIONS = 40
# Scenes of the calibration pictures; none of them is in the accuracy set.
_CALIBRATION_SPLIT, _CALIBRATION_SCENES = "val", 32

_console = Console()


def main() -> None:
    """Command line."""
    options = _parser().parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    labels = options.labels or _draw(options.out / "test", "test", 5000, options.scenes)
    calibration = options.calibration or _draw(
        options.out / "calibration", _CALIBRATION_SPLIT, 7000, _CALIBRATION_SCENES
    )
    settings = read_settings(options.model, {"calibration_set": str(calibration)})
    dataset = LabelledDataset.open(labels, options.scenes)
    rows = {name: _export(name, settings, options.out) for name in options.precision}
    for name, row in rows.items():
        _console.print(f"accuracy of {name}")
        for label, ratio in (("dense", 1.0), ("pruned", settings.keep_ratio)):
            row[f"accuracy_{label}"] = measure_accuracy(options.out / name, dataset, ratio)
    for label, ratio in (("dense", 1.0), ("pruned", settings.keep_ratio)):
        for name, cpu_ms in _time(rows, options.out, dataset, ratio).items():
            rows[name][f"cpu_ms_{label}"] = cpu_ms
    _judge(rows)
    _show(rows, len(dataset.images), settings.keep_ratio)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def _draw(folder: Path, split: str, seed: int, scenes: int) -> Path:
    """Labelled scenes of the default model's warehouse, drawn once."""
    if not (folder / "dataset.json").is_file():
        command = [sys.executable, "-m", "models.warehouse_tiny.export_eval", "--split", split]
        command += ["--seed", str(seed), "--scenes", str(scenes), "--out", str(folder)]
        subprocess.run(command, check=True)
    return folder


def _export(name: str, settings: ExportSettings, out: Path) -> dict[str, Any]:
    precision, _, dialect = name.partition("@")
    changed = replace(settings, precision=precision, dialect=dialect or settings.dialect)
    _console.print(f"exporting {name}")
    row: dict[str, Any] = {"gates": "passed"}
    for attempt in (changed, replace(changed, compare=False)):
        try:
            directory = export_model(attempt, out / name, overwrite=True, progress=_quiet)
            break
        except ArtifactError as error:
            row["gates"] = str(error)
    row["bytes"] = sum(spec.bytes for spec in directory.manifest.files)
    return row


def _quiet(step: str) -> None:
    """Steps of the exports are not shown."""


def _time(
    rows: dict[str, Any], out: Path, dataset: LabelledDataset, ratio: float
) -> dict[str, float]:
    """Median CPU ms per question of each directory, taking turns."""
    pipelines = {
        name: Pipeline.load(PipelineConfig(model=str(out / name), engine="ort-cpu", num_threads=1))
        for name in rows
    }
    prune = PruneSpec(Policy.KEEP_RATIO, keep_ratio=ratio)
    times: dict[str, list[float]] = {name: [] for name in rows}
    exact = [e for e in dataset.examples if dataset.families[e.family] == "exact"]
    for example in exact[:: max(1, len(exact) // _TIMED_QUESTIONS)][:_TIMED_QUESTIONS]:
        frame = Frame(dataset.read_image(example.image))
        for name, pipeline in pipelines.items():
            start = time.process_time()
            pipeline.answer(Query(example.question, prune=prune), [frame])
            times[name].append(time.process_time() - start)
    for pipeline in pipelines.values():
        pipeline.engine.close()
    return {name: float(np.median(values[2:])) * 1e3 for name, values in times.items()}


def _judge(rows: dict[str, dict[str, Any]]) -> None:
    """Marks the fastest precision (pruned) that passed its gates and lost at most a point."""
    reference = rows.get("fp32")
    fit = []
    for name, row in rows.items():
        if reference:
            row["drop"] = max(
                reference[key] - row[key] for key in ("accuracy_dense", "accuracy_pruned")
            )
        if row["gates"] == "passed" and row.get("drop", 0.0) <= _MAX_DROP:
            fit.append(name)
    if fit:
        rows[min(fit, key=lambda name: rows[name]["cpu_ms_pruned"])]["best"] = True


def _show(rows: dict[str, dict[str, Any]], scenes: int, keep_ratio: float) -> None:
    share = f"{keep_ratio:.0%}"
    table = Table(title=f"{scenes} scenes", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("precision\n", no_wrap=True)
    for head in ("accuracy\ndense", f"accuracy\n{share}", "drop\n", "size\nMB", "CPU ms\ndense"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column(f"CPU ms\n{share}", justify="right", no_wrap=True)
    table.add_column("gates\n")  # of those that failed, the message, on several lines
    for name, row in rows.items():
        table.add_row(
            name + (" *" if row.get("best") else ""),
            f"{row['accuracy_dense']:.4f}",
            f"{row['accuracy_pruned']:.4f}",
            f"{row.get('drop', 0.0):+.4f}",
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['cpu_ms_dense']:.1f}",
            f"{row['cpu_ms_pruned']:.1f}",
            row["gates"][:60],
        )
    _console.print(table)
    _console.print("* fastest of those that passed their gates and lost at most a point")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="models/warehouse_tiny.yaml")
    parser.add_argument("--out", type=Path, required=True, help="directories and labelled sets")
    parser.add_argument("--labels", type=Path, help="labelled set; drawn by default")
    parser.add_argument("--calibration", type=Path, help="labelled set of other scenes; drawn")
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--precision", nargs="+", default=list(DEFAULT), help="NAME[@DIALECT]")
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    main()
