"""What do methods keep of one image? A sheet with a method per column and a budget per row.

The image is encoded once in each way that a cell wants, after a run to warm up. Times are medians
of a few answers and include that encoding.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_atp.errors import ConfigError
from edge_atp.evaluation.answers import normalise_answer
from edge_atp.evaluation.arms import Arm, above_cut, arm_of, dense_arm, plan_arms
from edge_atp.evaluation.encodings import ImageEncodings
from edge_atp.evaluation.figures import new_figure, printable, save
from edge_atp.mask import overlay
from edge_atp.pipeline import Pipeline
from edge_atp.runtime.cut_encoder import most_kept
from edge_atp.runtime.in_llm import takes_budget
from edge_atp.runtime.manifest import Manifest
from edge_atp.types import Answer, Frame, Query

_REPEATS = 3
_CELL_INCHES = 2.7
_CAPTION_INCHES = 0.72
_LETTERS_PER_LINE = 34
_AGREES, _DIFFERS = "#0B6E3B", "#B3261E"


@dataclass(frozen=True)
class Cell:
    """One arm's answer; ``seconds`` from image to last token, ``agrees`` with the dense answer."""

    arm: Arm
    answer: Answer
    seconds: float
    agrees: bool


def check_sheet(methods: Sequence[str], keeps: Sequence[int], manifest: Manifest) -> None:
    """Refuse a sheet with a cell that cannot be asked; needs no model loaded.

    Raises:
        ConfigError: a method is unknown or does not run on this model, or a budget is out of range
            or above what the encoder's cut leaves to a method.
    """
    plan_arms(methods, keeps, manifest.vision.num_patches, manifest)
    for method in filter(takes_budget, methods):
        most = most_kept(method, manifest)
        if above := [keep for keep in keeps if keep > most]:
            raise ConfigError(
                f"{above_cut(method, above, most)}: a sheet has every method at every budget, so"
                f" give budgets of at most {most}, or leave {method} out"
            )


def compare(
    pipeline: Pipeline, frame: Frame, question: str, methods: Sequence[str], keeps: Sequence[int]
) -> tuple[Cell, list[list[Cell]]]:
    """Answer one question with every method at every budget.

    Returns:
        The dense cell, and the cells by budget (rows) and method (columns).
    Raises:
        EdgeAtpError: a method is unknown or misses an encoder output, a budget is out of range.
    """
    whole = dense_arm(pipeline.grid.num_patches)
    arms = [[arm_of(method, keep) for method in methods] for keep in keeps]
    _warm_up(pipeline, frame, question, [whole, *(arm for row in arms for arm in row)])
    encodings = ImageEncodings(pipeline, frame)
    dense, dense_s = _ask(pipeline, encodings, question, whole)
    expected = normalise_answer(dense.text)

    def cell(arm: Arm) -> Cell:
        answer, seconds = _ask(pipeline, encodings, question, arm)
        agrees = normalise_answer(answer.text) == expected
        return Cell(arm, answer, seconds, agrees)

    rows = [[cell(arm) for arm in row] for row in arms]
    return Cell(whole, dense, dense_s, True), rows


def write_sheet(dense: Cell, rows: list[list[Cell]], question: str, path: Path) -> Path:
    """Draw the sheet.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    height, width = dense.answer.masks[0].frame.image.shape[:2]
    columns = len(rows[0])
    cell_height = _CELL_INCHES * height / width + _CAPTION_INCHES
    figure = new_figure(_CELL_INCHES * columns + 0.4, cell_height * len(rows) + 0.9)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for row, cells in zip(grid, rows, strict=True):
        for axes, cell in zip(row, cells, strict=True):
            _draw(axes, cell)
        row[0].set_ylabel(f"{max(cell.arm.num_kept for cell in cells)} tokens", fontsize=10)
    for axes, cell in zip(grid[0], rows[0], strict=True):
        axes.set_title(cell.arm.method, fontsize=11, fontweight="bold")
    tokens = dense.answer.tokens.visual_total
    said = printable(dense.answer.text)
    title = f"{question}\ndense, {tokens} tokens, {1e3 * dense.seconds:.0f} ms: {said}"
    letters = int(columns * _LETTERS_PER_LINE * 0.8)
    wrapped = "\n".join(textwrap.fill(line, max(28, letters)) for line in title.split("\n"))
    figure.suptitle(wrapped, fontsize=11)
    return save(figure, path)


def _draw(axes: Any, cell: Cell) -> None:
    tokens = cell.answer.tokens
    axes.imshow(overlay(cell.answer.masks[0]))
    axes.set_xticks([])
    axes.set_yticks([])
    colour = _AGREES if cell.agrees else _DIFFERS
    share = 100 * tokens.visual_kept / tokens.visual_total
    verdict = "as dense" if cell.agrees else "not as dense"
    text = printable(cell.answer.text) or "(empty)"
    answer = textwrap.shorten(text, 2 * _LETTERS_PER_LINE, placeholder="…")
    caption = textwrap.fill(answer, _LETTERS_PER_LINE)
    detail = f"kept {tokens.visual_kept} ({share:.0f} %), {1e3 * cell.seconds:.0f} ms, {verdict}"
    axes.set_xlabel(f"{caption}\n{detail}", fontsize=8.5, color=colour, loc="left")
    for spine in axes.spines.values():
        spine.set_edgecolor(colour)


def _warm_up(pipeline: Pipeline, frame: Frame, question: str, arms: Sequence[Arm]) -> None:
    """Run every encoder once: its first run takes longer, and its time is taken once."""
    encodings = ImageEncodings(pipeline, frame)
    for arm in arms:
        encodings.wanted_by(Query(question, prune=arm.prune_spec()))


def _ask(
    pipeline: Pipeline, encodings: ImageEncodings, question: str, arm: Arm
) -> tuple[Answer, float]:
    """The answer and the median seconds of encoding, selection, prefill and decoding."""
    query = Query(question, prune=arm.prune_spec())
    encoding, encode_s = encodings.wanted_by(query)
    answers = [pipeline.answer(query, [encoding]) for _ in range(_REPEATS)]
    seconds = [encode_s + a.times.prune + a.times.prefill + a.times.decode for a in answers]
    return answers[0], statistics.median(seconds)
