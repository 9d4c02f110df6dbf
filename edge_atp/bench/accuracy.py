"""Accuracy of what is timed, from a labelled data set or from an evaluation that was run on one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge_atp.config import PipelineConfig
from edge_atp.errors import DatasetError
from edge_atp.evaluation.answering import Answerer
from edge_atp.evaluation.arms import Arm
from edge_atp.evaluation.dataset import INDEX_FILE, LabelledDataset
from edge_atp.evaluation.records import Record
from edge_atp.evaluation.summary import summarise
from edge_atp.evaluation.sweep import plan_tasks

SUMMARY_FILE = "summary.json"


def accuracy(
    folder: Path,
    arms: Sequence[Arm],
    config: PipelineConfig,
    limit: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Exact match of each arm with its 95 % interval.

    Args:
        folder: a labelled data set, which is answered here, or the --out of ``edge-atp evaluate``,
            whose numbers are taken.
        limit: images answered.
        progress: told images done and how many there are.
    Returns:
        {"source", "num_questions", "exact": arm -> {value, low, high}}.
    Raises:
        DatasetError: the folder is neither, or holds none of the arms.
    """
    if (folder / SUMMARY_FILE).is_file():
        return _from_summary(folder / SUMMARY_FILE, arms)
    if not (folder / INDEX_FILE).is_file():
        raise DatasetError(
            f"--labelled {folder} holds neither {INDEX_FILE} (a labelled data set) nor"
            f" {SUMMARY_FILE} (the --out of `edge-atp evaluate`)"
        )
    dataset = LabelledDataset.open(folder, limit)
    tasks = plan_tasks(dataset.images, tuple(arms), long_images=0)
    answerer = Answerer(dataset, config)
    records: list[Record] = []
    try:
        for number, task in enumerate(tasks):
            records += answerer.answer(task).records
            if progress:
                progress(number + 1, len(tasks))
    finally:
        answerer.close()
    summary = summarise(dataset, records, list(arms))
    return _picked(summary, str(folder), arms)


def _from_summary(path: Path, arms: Sequence[Arm]) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        return _picked(summary, str(path), arms)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"--labelled {path}: no summary of an evaluation ({error})") from error


def _picked(summary: dict[str, Any], source: str, arms: Sequence[Arm]) -> dict[str, Any]:
    names = {arm.name for arm in arms}
    exact = {
        name: entry["exact"]
        for name, entry in summary["arms"].items()
        if name in names and "exact" in entry
    }
    if not exact:
        raise DatasetError(f"--labelled {source} has none of {', '.join(sorted(names))}")
    return {"source": source, "num_questions": summary["num_questions"], "exact": exact}
