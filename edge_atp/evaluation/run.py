"""One evaluation from settings to report: the only file here that names every stage.

open -> plan arms and tasks -> answer -> summarise -> tables, JSON, plots
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from edge_atp import __version__
from edge_atp.config import PipelineConfig
from edge_atp.errors import ConfigError, DatasetError
from edge_atp.evaluation.arms import BASELINES, Arm, plan_arms, split_methods
from edge_atp.evaluation.baseline import against_baseline, read_baseline
from edge_atp.evaluation.conditions import Condition, robustness_conditions
from edge_atp.evaluation.dataset import LabelledDataset, file_sha256
from edge_atp.evaluation.failures import find_failures, write_failure_sheet
from edge_atp.evaluation.figures import new_figure
from edge_atp.evaluation.plots import write_plots
from edge_atp.evaluation.records import Record, RecordFile
from edge_atp.evaluation.summary import summarise
from edge_atp.evaluation.sweep import plan_tasks, run_tasks
from edge_atp.evaluation.tables import print_summary
from edge_atp.runtime import sessions
from edge_atp.runtime.find_model import find_model
from edge_atp.runtime.manifest import FILE_NAME, Manifest
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.types import PatchGrid

RECORDS_FILE = "records.jsonl"


@dataclass(frozen=True)
class Settings:
    """What to evaluate.

    dataset, out: folders of the labels and of the results.
    config: model, backend, threads, seed, longest answer.
    methods, keeps: pruning methods (empty: all that the model can run) and visual tokens kept.
    limit: first images only; None for all.
    long_limit: images asked for long answers; None for all.
    robustness_keep: budget under disturbance, 0 for no robustness part.
    robustness_methods: asked there beside dense.
    robustness_limit: images there.
    processes, max_seconds, resume: how to run.
    choices: score questions over their closed answer sets.
    baseline: results folder of an earlier run on the same data set, such as that of another
        precision; None for none.
    plots: write pictures.
    """

    dataset: Path
    out: Path
    config: PipelineConfig = field(default_factory=PipelineConfig)
    methods: tuple[str, ...] = ("atp", "random")
    keeps: tuple[int, ...] = (64,)
    limit: int | None = None
    long_limit: int | None = None
    robustness_keep: int = 0
    robustness_methods: tuple[str, ...] = ("atp", "random")
    robustness_limit: int = 200
    processes: int = 1
    max_seconds: float = 0.0
    resume: bool = False
    choices: bool = False
    baseline: Path | None = None
    plots: bool = True


def evaluate(settings: Settings, console: Console) -> dict[str, Any]:
    """Run an evaluation and write its report.

    Returns:
        The summary, as in ``summary.json``.
    Raises:
        EdgeAtpError: see ``edge_atp.errors``; before any work where settings do not fit.
    """
    if settings.plots:
        new_figure(1.0, 1.0)  # a missing plotting library is an error now, not after hours
    dataset, directory = open_both(settings)
    chosen = ": ".join(chosen_backend(settings, directory))
    console.print(f"[dim]{escape(chosen)}[/dim]", highlight=False)
    earlier = None
    if settings.baseline:
        earlier = read_baseline(settings.baseline / RECORDS_FILE, dataset)
    num_patches = directory.manifest.vision.num_patches
    keeps = [keep for keep in settings.keeps if keep <= num_patches]
    methods = settings.methods or _every_method(settings, directory.manifest, console)
    arms = plan_arms(methods, keeps, num_patches, directory.manifest)
    conditions: tuple[Condition, ...] = ()
    disturbed_arms: tuple[Arm, ...] = ()
    if settings.robustness_keep:
        conditions = robustness_conditions(dataset.examples)
        disturbed_arms = plan_arms(
            settings.robustness_methods,
            [settings.robustness_keep],
            num_patches,
            directory.manifest,
        )
        arms = tuple(dict.fromkeys((*arms, *disturbed_arms)))
    records, complete = answer_all(
        settings, dataset, directory, arms, conditions=conditions, disturbed_arms=disturbed_arms
    )
    summary = summarise(dataset, records, arms, disturbed_arms, seed=settings.config.seed)
    if earlier is not None:
        names = [arm.name for arm in arms]
        summary["minus_baseline"] = against_baseline(
            dataset, records, earlier, names, seed=settings.config.seed
        )
    summary["run"] = describe_run(settings, dataset, directory, complete)
    write_json(settings.out / "summary.json", summary)
    print_summary(summary, console)
    if not complete:
        console.print("[yellow]stopped by the time cap; --resume goes on[/yellow]")
    if settings.plots and summary["arms"]:
        _write_pictures(settings, dataset, summary, records, arms)
    console.print(f"report: {settings.out}")
    return summary


def open_both(settings: Settings) -> tuple[LabelledDataset, ModelDirectory]:
    """Open data set and model, and check that they fit.

    Raises:
        DatasetError: the data set's target masks are of another patch grid than the model's.
    """
    found = find_model(settings.config.model, settings.config.engine)
    directory = ModelDirectory.open(found.path)
    dataset = LabelledDataset.open(settings.dataset, settings.limit)
    vision = directory.manifest.vision.patch_grid
    if dataset.grid != PatchGrid(vision.rows, vision.cols):
        raise DatasetError(
            f"{settings.dataset}: patch_grid is {dataset.grid.rows} x {dataset.grid.cols}, the"
            f" model's is {vision.rows} x {vision.cols}; write the data set for this grid"
        )
    return dataset, directory


def answer_all(
    settings: Settings,
    dataset: LabelledDataset,
    directory: ModelDirectory,
    arms: tuple[Arm, ...],
    *,
    conditions: tuple[Condition, ...] = (),
    disturbed_arms: tuple[Arm, ...] = (),
    records_name: str = RECORDS_FILE,
) -> tuple[list[Record], bool]:
    """Ask everything; returns the records and whether the time cap left nothing out."""
    tasks = plan_tasks(
        dataset.images,
        tuple(replace(arm, closed=settings.choices) for arm in arms),
        conditions,
        tuple(replace(arm, closed=settings.choices) for arm in disturbed_arms),
        settings.robustness_limit,
        settings.long_limit,
    )
    identity = {
        "model": file_sha256(directory.path / FILE_NAME),
        "dataset": dataset.sha256,
        "arms": [arm.name for arm in arms],
        "disturbed_arms": [arm.name for arm in disturbed_arms],
        "long_limit": settings.long_limit,
        **({"choices": True} if settings.choices else {}),
        "seed": settings.config.seed,
        "max_new_tokens": settings.config.max_new_tokens,
    }
    path = settings.out / records_name
    if path.exists() and not settings.resume:
        raise ConfigError(
            f"--out {settings.out} already holds {records_name}; give --resume to go on with it,"
            " or choose another folder"
        )
    with RecordFile(path, identity, settings.resume) as records:
        complete = run_tasks(
            tasks,
            dataset,
            settings.config,
            records,
            processes=settings.processes,
            max_seconds=settings.max_seconds,
        )
    # Images that an earlier, larger run answered do not belong to this one.
    lines = {example.line for example in dataset.examples}
    return [record for record in records.records if record.line in lines], complete


def chosen_backend(settings: Settings, directory: ModelDirectory) -> tuple[str, str]:
    """What runs the model, and why it and, of a shipped model, why this export."""
    backend, reason = sessions.choose_for(directory.manifest, settings.config.engine)
    found = find_model(settings.config.model, settings.config.engine)
    return backend, "; ".join(filter(None, (reason, found.reason)))


def describe_run(
    settings: Settings, dataset: LabelledDataset, directory: ModelDirectory, complete: bool
) -> dict[str, Any]:
    """What the numbers were measured on."""
    backend, reason = chosen_backend(settings, directory)
    return {
        "edge_atp": __version__,
        "model_id": directory.manifest.model_id,
        "model_source_sha256": directory.manifest.source.sha256,
        "graphs_sha256": {g.role: directory.sha256(g.role) for g in directory.manifest.graphs},
        "precision": directory.manifest.precision.compute,
        "backend": backend,
        "backend_reason": reason,
        "machine": platform.machine(),
        "processes": settings.processes,
        "threads": settings.config.num_threads,
        "dataset": {
            "split": dataset.split,
            "seed": dataset.seed,
            "sha256": dataset.sha256,
            "images": len(dataset.images),
            "questions": len(dataset.examples),
        },
        "seed": settings.config.seed,
        "choices": settings.choices,
        "complete": complete,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write indented JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _every_method(settings: Settings, manifest: Manifest, console: Console) -> tuple[str, ...]:
    """All methods this model can run, the model's own first and the baselines last; says which
    are left out and why."""
    usable, refused = split_methods(manifest)
    first = settings.config.method or manifest.selection.method
    for method, reason in refused.items():
        console.print(f"[dim]left out {method}: {escape(reason)}[/dim]")
    return tuple(sorted(usable, key=lambda method: (method != first, method in BASELINES)))


def _write_pictures(
    settings: Settings,
    dataset: LabelledDataset,
    summary: dict[str, Any],
    records: list[Record],
    arms: tuple[Arm, ...],
) -> None:
    write_plots(summary, settings.out)
    shown = _sheet_arm(arms)
    failures = find_failures(dataset, records, shown.name)
    write_failure_sheet(dataset, failures, shown.name, settings.out / "failures.png")


def _sheet_arm(arms: tuple[Arm, ...]) -> Arm:
    """The first method's arm nearest a quarter of the tokens; dense where nothing is pruned."""
    dense, *pruned = arms
    first = [arm for arm in pruned if arm.method == pruned[0].method]
    return min(first, key=lambda arm: abs(arm.num_kept - dense.num_kept / 4), default=dense)
