"""This device's cost model: measure a grid of tokens, fit, write.

The grid is every combination of visual tokens kept, two lengths of question and three lengths of
answer; each point's stage times are medians over the rounds, which take turns through the grid.
The model is checked on points between those it was fitted to.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from edge_atp.bench.measure import Run
from edge_atp.bench.questions import BUILT_IN, CAPTION, SHORT, Question, drawn_picture
from edge_atp.bench.run import loaded, progress_bar
from edge_atp.bench.stages import TimedPipeline, timed_answer
from edge_atp.config import PipelineConfig
from edge_atp.cost_model import (
    STAGE_TERMS,
    CostModel,
    Identity,
    Sample,
    Work,
    calibration_path,
    fit,
    require_writable,
    write_calibration,
)
from edge_atp.errors import BudgetExceededError, ConfigError
from edge_atp.machine import read_machine
from edge_atp.runtime.cut_encoder import most_kept
from edge_atp.runtime.running import running
from edge_atp.types import Frame, Policy, PruneSpec, Query

_ANSWER_TOKENS = (1, 8, 32)
_KEEP_SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625)
# Between the points of the grid; the fit does not see them.
_CHECK_SHARES = (0.75, 0.375, 0.1875)
_CHECK_TOKENS = 16
_LONGER = " Answer for the whole picture and name everything that you are sure about."


@dataclass(frozen=True)
class Point:
    """One combination that is measured."""

    num_kept: int
    question: Question
    max_new_tokens: int


def calibrate(
    config: PipelineConfig,
    console: Console,
    *,
    method: str = "",
    rounds: int = 10,
    questions: Sequence[Question] = BUILT_IN,
    out: Path | None = None,
) -> Path:
    """Measure, fit and write the cost model of a model directory on this device.

    Args:
        method: pruning method measured, "" for the model's own.
        out: the file; None for the usual place.
    Returns:
        The file written.
    Raises:
        EdgeAtpError: see ``edge_atp.errors``; nothing is written then, nor after Ctrl-C.
    """
    # A calibration that is there already may be of an older model: it must not matter here.
    plain = replace(config, reuse_prefix=False, calibration="", latency_budget_ms=0.0)
    with loaded(plain) as pipeline:
        identity = running(pipeline.engine.directory, pipeline.engine.backend, config.num_threads)
        path = out or calibration_path(identity)
        require_writable(path)
        method = method or pipeline.default_budget.method
        most = most_kept(method, pipeline.manifest)
        points = plan_grid(pipeline, questions, _KEEP_SHARES, _ANSWER_TOKENS, most)
        checks = plan_grid(pipeline, questions[:1], _CHECK_SHARES, (_CHECK_TOKENS,), most)
        console.print(_headline(identity, method))
        runs = _measured(pipeline, [*points, *checks], method, rounds, console)
        samples = [to_sample(found) for found in runs.values()]
    model = fit_model(identity, method, samples[: len(points)], _typical(runs, points))
    errors = check(model, samples[len(points) :])
    model = replace(model, residuals={**model.residuals, "unseen": errors})
    write_calibration(model, path)
    _print(model, path, console)
    return path


def plan_grid(
    pipeline: TimedPipeline,
    questions: Sequence[Question],
    shares: Sequence[float],
    answer_tokens: Sequence[int],
    most: int = 0,
) -> list[Point]:
    """The combinations that fit this model: prompts that are too long for it are left out.

    Args:
        shares: of the visual tokens.
        most: visual tokens that can be kept; 0 for all of the model's.
    Raises:
        ConfigError: no question fits.
    """
    count = most or pipeline.manifest.vision.num_patches
    keeps = sorted({max(1, round(share * count)) for share in shares})
    kinds = [next((q for q in questions if q.kind == kind), None) for kind in (SHORT, CAPTION)]
    asked = [question for question in kinds if question] or list(questions[:1])
    longer = replace(asked[0], text=asked[0].text + _LONGER)
    fitting = [question for question in [*asked, longer] if _fits(pipeline, question)]
    if not fitting:
        raise ConfigError("--questions: none of them is short enough for this model's prompt")
    return [Point(*point) for point in itertools.product(keeps, fitting, answer_tokens)]


def to_sample(runs: Sequence[Run]) -> Sample:
    """Median stage times of one point's runs, as the cost model counts them."""
    first = runs[0]
    stages = {
        stage: float(np.median([run.stages_ms[stage] for run in runs])) for stage in STAGE_TERMS
    }
    # What no stage claims is spent once an answer, as tokenising the prompt is.
    stages["text"] += float(np.median([run.stages_ms["other"] for run in runs]))
    work = Work(
        num_kept=first.visual_kept,
        text_tokens=first.text_tokens,
        answer_tokens=max(1, len(first.token_ids)),
    )
    return Sample(work, stages)


def fit_model(
    identity: Identity, method: str, samples: Sequence[Sample], answer_tokens: int
) -> CostModel:
    """The cost model of the samples, dated now."""
    coefficients, residuals = fit(samples)
    kept = [sample.work.num_kept for sample in samples]
    return CostModel(
        identity=identity,
        coefficients=coefficients,
        min_kept=min(kept),
        max_kept=max(kept),
        answer_tokens=answer_tokens,
        method=method,
        residuals=residuals,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def check(model: CostModel, samples: Sequence[Sample]) -> dict[str, float]:
    """Error of the total on samples the model was not fitted to."""
    measured = np.array([sum(sample.stages_ms.values()) for sample in samples])
    predicted = np.array([sum(model.stages_ms(sample.work).values()) for sample in samples])
    return {
        "rms_ms": round(float(np.sqrt(np.mean((predicted - measured) ** 2))), 4),
        "max_relative": round(float(np.max(np.abs(predicted - measured) / measured)), 4),
    }


def _fits(pipeline: TimedPipeline, question: Question) -> bool:
    count = pipeline.manifest.vision.num_patches
    try:
        text = len(pipeline.engine.prompt_tokens(question.text, 1).ids) - 1
    except BudgetExceededError:
        return False
    return count + text + max(_ANSWER_TOKENS) <= pipeline.manifest.llm.max_kv


def _measured(
    pipeline: TimedPipeline, points: Sequence[Point], method: str, rounds: int, console: Console
) -> dict[Point, list[Run]]:
    frame = Frame(drawn_picture())
    found: dict[Point, list[Run]] = {point: [] for point in points}
    with progress_bar(console) as bar:
        task = bar.add_task("calibrating", total=len(points) * (rounds + 1))
        for number, point in _turns(points, rounds):
            run = timed_answer(pipeline, _query(point, method), frame, forget=True)
            if number >= 0:  # the first round loads and tunes
                found[point].append(run)
            bar.advance(task)
    return found


def _turns(points: Sequence[Point], rounds: int) -> Iterator[tuple[int, Point]]:
    for number in range(-1, rounds):
        for point in points:
            yield number, point


def _query(point: Point, method: str) -> Query:
    spec = PruneSpec(Policy.TOKEN_BUDGET, method=method, max_visual_tokens=point.num_kept)
    return Query(point.question.text, max_new_tokens=point.max_new_tokens, prune=spec)


def _typical(runs: dict[Point, list[Run]], points: Sequence[Point]) -> int:
    """Length of a short answer when nothing cuts it off before its longest measured."""
    short = [p for p in points if p.question.kind == SHORT] or list(points)
    longest = max(point.max_new_tokens for point in short)
    lengths = [len(r.token_ids) for p in short if p.max_new_tokens == longest for r in runs[p]]
    return max(1, round(float(np.median(lengths))))


def _headline(identity: Identity, method: str) -> str:
    machine = read_machine()
    busy = "  [yellow](busy: calibrate again when it is idle)[/yellow]" if machine.is_busy else ""
    return (
        f"[bold]{identity.model_id}[/bold] on {identity.backend}, {identity.device},"
        f" method {method}, load {machine.load}{busy}"
    )


def _print(model: CostModel, path: Path, console: Console) -> None:
    table = Table("stage", "terms", "coefficients, ms", "rms, ms", box=SIMPLE_HEAD)
    for stage, values in model.coefficients.items():
        listed = ", ".join(f"{value:.3g}" for value in values)
        rms = model.residuals[stage]["rms_ms"]
        table.add_row(stage, ", ".join(STAGE_TERMS[stage]), listed, f"{rms:.3f}")
    console.print(table)
    errors = {name: 100 * model.residuals[name]["max_relative"] for name in ("total", "unseen")}
    console.print(
        f"largest error of a total: {errors['total']:.0f} % where it was fitted,"
        f" {errors['unseen']:.0f} % between"
    )
    example = Work(model.max_kept, 20, model.answer_tokens)
    quarter = replace(example, num_kept=max(1, model.max_kept // 4))
    for work in (example, quarter):
        total = sum(model.stages_ms(work).values())
        console.print(
            f"predicted for {work.num_kept} visual, {work.text_tokens} text and"
            f" {work.answer_tokens} answer tokens: {total:.1f} ms"
        )
    console.print(f"calibration: {path}", soft_wrap=True)
