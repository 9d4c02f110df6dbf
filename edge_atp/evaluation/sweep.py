"""Run tasks to records: in this process or several, resumable, under a time cap."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edge_atp.config import PipelineConfig
from edge_atp.evaluation.answering import Answerer, Task
from edge_atp.evaluation.arms import Arm
from edge_atp.evaluation.conditions import Condition
from edge_atp.evaluation.dataset import LabelledDataset
from edge_atp.evaluation.records import FinishedTask, RecordFile

# The model of a worker process, set by its initialiser.
_WORKER: Answerer | None = None


def plan_tasks(
    images: Sequence[str],
    arms: tuple[Arm, ...],
    disturbed: Sequence[Condition] = (),
    disturbed_arms: tuple[Arm, ...] = (),
    disturbed_images: int = 0,
    long_images: int | None = None,
) -> list[Task]:
    """Every image clean with all arms, then the first images under every other condition.

    Args:
        images: paths in the data set.
        arms: asked of clean images.
        disturbed: robustness conditions; those that only reword share one encoding.
        disturbed_arms: asked under those.
        disturbed_images: how many images are disturbed; only short answers are asked there.
        long_images: how many images are asked for long answers; None for all.
    """
    tasks = [
        Task(image, (Condition(),), arms, long_images is None or number < long_images)
        for number, image in enumerate(images)
    ]
    reworded = tuple(condition for condition in disturbed if condition.variant)
    corrupted = [(condition,) for condition in disturbed if condition.corruption]
    groups = [*([reworded] if reworded else []), *corrupted]
    for image in images[:disturbed_images]:
        tasks += [Task(image, group, disturbed_arms, long_answers=False) for group in groups]
    return tasks


def run_tasks(
    tasks: Sequence[Task],
    dataset: LabelledDataset,
    config: PipelineConfig,
    records: RecordFile,
    *,
    processes: int = 1,
    max_seconds: float = 0.0,
    progress: bool = True,
) -> bool:
    """Work through ``tasks`` and append what they give to ``records``.

    Args:
        tasks: those that ``records`` already holds are skipped.
        processes: each loads its own model; with more than one, the backend gets one thread each
            unless ``config.num_threads`` says otherwise.
        max_seconds: no further task is begun after this time; 0 for no cap.
        progress: draw a progress bar.
    Returns:
        True when every task is done, False when the cap came first.
    """
    done = {task.key for task in records.finished}
    open_tasks = [task for task in tasks if task.key not in done]
    deadline_s = time.monotonic() + max_seconds if max_seconds > 0 else float("inf")
    finished = len(tasks) - len(open_tasks)
    with (
        _progress_bar(progress) as bar,
        _results(open_tasks, dataset, config, processes) as results,
    ):
        shown = bar.add_task("answering", total=len(tasks), completed=finished)
        while finished < len(tasks) and time.monotonic() < deadline_s:
            records.append(next(results))
            finished += 1
            bar.update(shown, completed=finished)
    return finished == len(tasks)


@contextmanager
def _results(
    tasks: Sequence[Task], dataset: LabelledDataset, config: PipelineConfig, processes: int
) -> Iterator[Iterator[FinishedTask]]:
    """An iterator over finished tasks; work stops when the block is left."""
    if processes <= 1 or len(tasks) <= 1:
        answerer = Answerer(dataset, config)
        try:
            yield (answerer.answer(task) for task in tasks)
        finally:
            answerer.close()
        return
    settings = replace(config, num_threads=config.num_threads or 1)
    # spawn: a forked copy of an initialised inference backend does not work.
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, initializer=_load_worker, initargs=(dataset, settings)) as pool:
        yield pool.imap_unordered(_answer_in_worker, tasks)


def _load_worker(dataset: LabelledDataset, config: PipelineConfig) -> None:
    global _WORKER
    _WORKER = Answerer(dataset, config)


def _answer_in_worker(task: Task) -> FinishedTask:
    assert _WORKER is not None
    return _WORKER.answer(task)


def _progress_bar(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        disable=not shown,
    )
