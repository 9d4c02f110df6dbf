"""One benchmark from settings to report: the only file here that names every stage.

load -> plan arms -> alternate -> summarise -> accuracy -> tables, JSON, plots

Ctrl-C (or SIGTERM) ends the measurement; what was measured so far is summarised and written.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edge_atp import __version__
from edge_atp.bench.accuracy import accuracy
from edge_atp.bench.arms import plan_bench_arms
from edge_atp.bench.dimensions import model_spec
from edge_atp.bench.hugging_face import HuggingFaceContender
from edge_atp.bench.measure import Contender, Timed, alternate
from edge_atp.bench.plots import write_plots
from edge_atp.bench.questions import BUILT_IN, DEFAULT_TOKENS, Question, read_pictures
from edge_atp.bench.report import summarise
from edge_atp.bench.stages import EngineContender, TimedPipeline
from edge_atp.bench.start_up import start_up
from edge_atp.bench.tables import print_report
from edge_atp.config import PipelineConfig
from edge_atp.errors import ConfigError
from edge_atp.evaluation.arms import Arm
from edge_atp.evaluation.figures import new_figure
from edge_atp.machine import read_machine
from edge_atp.runtime.loading import load_engine
from edge_atp.runtime.running import running
from edge_atp.types import Frame

FORMAT_VERSION = 1
JSON_FILE = "bench.json"


@dataclass(frozen=True)
class Settings:
    """What to measure.

    config: model, backend, threads.
    methods, keeps: pruning methods (empty: the model's own) and visual tokens kept; dense is
        always in.
    rounds: measured rounds; a warm-up round comes before them.
    tokens: longest answer per kind of question.
    checkpoint: Hugging Face checkpoint to compare with, None for none.
    labelled: labelled data set, or the --out of an evaluation, None for none.
    labelled_limit: images of it.
    standing: questions were asked before: the text embedding is remembered.
    start_up: fresh interpreters timed, 0 for none.
    out: folder of JSON and plots, None for the terminal only.
    """

    config: PipelineConfig
    methods: tuple[str, ...] = ()
    keeps: tuple[int, ...] = (256, 128, 64, 32)
    questions: tuple[Question, ...] = BUILT_IN
    pictures: tuple[Path, ...] = ()
    rounds: int = 10
    tokens: dict[str, int] = field(default_factory=lambda: dict(DEFAULT_TOKENS))
    checkpoint: Path | None = None
    labelled: Path | None = None
    labelled_limit: int = 100
    standing: bool = False
    start_up: int = 3
    out: Path | None = None
    plots: bool = True


def bench(settings: Settings, console: Console) -> dict[str, Any]:
    """Measure, and write the report.

    Returns:
        The report, as in ``bench.json``; ``complete`` is false after Ctrl-C.
    Raises:
        EdgeAtpError: see ``edge_atp.errors``; before any work where settings do not fit.
    """
    if settings.out:
        # What cannot be written or drawn is an error now, not after the measurement.
        require_folder(settings.out)
        if settings.plots:
            new_figure(1.0, 1.0)
    # Every question as if it were the first, unless standing questions are what is measured.
    with loaded(replace(settings.config, reuse_prefix=settings.standing)) as pipeline:
        methods = settings.methods or (pipeline.default_budget.method,)
        arms = plan_bench_arms(methods, settings.keeps, pipeline.manifest)
        report = _head(settings, pipeline)
        timed: list[Timed] = []
        try:
            with ExitStack() as stack:
                stack.enter_context(_ended_by_sigterm())
                _measure(settings, pipeline, arms, stack, console, timed)
            if settings.start_up:
                model = str(pipeline.engine.directory.path)
                engine, threads = pipeline.engine.backend, settings.config.num_threads
                with console.status("timing fresh interpreters"):
                    report["start_up"] = start_up(model, engine, threads, settings.start_up)
            if settings.labelled:
                report["accuracy"] = _accuracy(settings, arms, console)
            report["complete"] = True
        except KeyboardInterrupt:
            report["complete"] = False
        _finish(settings, report, timed, arms, pipeline)
    _write(settings, report)
    print_report(report, console)
    if settings.out:
        console.print(f"report: {settings.out}")
    return report


@contextmanager
def loaded(config: PipelineConfig) -> Iterator[TimedPipeline]:
    """A pipeline with a stopwatch on a freshly loaded engine."""
    engine = load_engine(config.model, config.engine, num_threads=config.num_threads)
    try:
        yield TimedPipeline(engine, engine.directory, config)
    finally:
        engine.close()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM, which `timeout` and schedulers send, ends the measurement as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers belong to the main thread
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _measure(
    settings: Settings,
    pipeline: TimedPipeline,
    arms: tuple[Arm, ...],
    stack: ExitStack,
    console: Console,
    timed: list[Timed],
) -> None:
    images = read_pictures(settings.pictures)
    frames = [Frame(image) for image in images]
    contenders: list[Contender] = [
        EngineContender(arm.name, pipeline, arm, frames, settings.tokens, settings.standing)
        for arm in arms
    ]
    if settings.checkpoint:
        with console.status("loading the checkpoint with Hugging Face, in a process of its own"):
            contenders.append(
                stack.enter_context(
                    HuggingFaceContender(
                        settings.checkpoint,
                        pipeline,
                        images,
                        settings.tokens,
                        settings.config.num_threads,
                    )
                )
            )
    runs = alternate(contenders, settings.questions, len(frames), settings.rounds)
    total = len(contenders) * len(settings.questions) * len(frames) * (settings.rounds + 1)
    with progress_bar(console) as bar:
        task = bar.add_task("measuring", total=total)
        for entry in runs:
            timed.append(entry)
            bar.advance(task)


def _accuracy(settings: Settings, arms: tuple[Arm, ...], console: Console) -> dict[str, Any]:
    assert settings.labelled is not None
    with progress_bar(console) as bar:
        task = bar.add_task("answering the labelled set", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return accuracy(settings.labelled, arms, settings.config, settings.labelled_limit, progress)


def _head(settings: Settings, pipeline: TimedPipeline) -> dict[str, Any]:
    manifest, machine = pipeline.manifest, read_machine()
    shown = asdict(replace(settings, config=PipelineConfig()))
    del shown["config"]
    return {
        "format_version": FORMAT_VERSION,
        "kind": "measured",
        "edge_atp": __version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.to_json(),
        "model": {
            **asdict(
                running(pipeline.engine.directory, pipeline.engine.backend, _threads(settings))
            ),
            "backend_reason": pipeline.engine.backend_reason,
            "precision": manifest.precision.compute,
            "num_patches": manifest.vision.num_patches,
            "kv_cache_allocated_mb": round(pipeline.engine.kv_bytes / 1e6, 3),
        },
        "settings": json.loads(json.dumps(shown, default=str)),
    }


def _finish(
    settings: Settings,
    report: dict[str, Any],
    timed: list[Timed],
    arms: tuple[Arm, ...],
    pipeline: TimedPipeline,
) -> None:
    manifest = pipeline.manifest
    dimensions, source = model_spec(manifest, settings.checkpoint)
    after = read_machine()
    report["machine"]["load_at_end"] = after.load
    report["model"]["dimensions"] = source
    report["warnings"] = _warnings(report["machine"], settings)
    precision = manifest.precision.compute
    report["results"] = summarise(timed, arms, dimensions, precision, manifest)


def _warnings(machine: dict[str, Any], settings: Settings) -> list[str]:
    found = []
    if machine["is_busy"]:
        found.append(
            f"the load average was {machine['load']} on {machine['cores']} cores before this began:"
            " wall times are inflated, compare CPU times and ratios"
        )
    if settings.rounds < 5:
        found.append(f"--rounds {settings.rounds}: a median of so few runs is easily disturbed")
    return found


def _write(settings: Settings, report: dict[str, Any]) -> None:
    if not settings.out:
        return
    write_json(settings.out / JSON_FILE, report)
    if settings.plots:
        write_plots(report, settings.out)


def require_folder(folder: Path) -> None:
    """Make the folder of a report and see that files can be written there.

    Raises:
        ConfigError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be written ({error.strerror})") from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a report, whole or not at all.

    Raises:
        ConfigError: the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"--out {path.parent}: cannot be written ({error.strerror})") from error


def progress_bar(console: Console) -> Progress:
    """A bar that leaves nothing behind; silent where output is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _threads(settings: Settings) -> int:
    return settings.config.num_threads
