"""A sheet of failures: images with question, answer and expected answer, for looking at.

Shows what the pruned model got wrong, first where the dense model was right: those are pruning's
own failures.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edge_atp.evaluation.answers import score_answer
from edge_atp.evaluation.arms import DENSE
from edge_atp.evaluation.conditions import CLEAN
from edge_atp.evaluation.dataset import LabelledDataset
from edge_atp.evaluation.figures import new_figure, printable, save
from edge_atp.evaluation.labels import Example
from edge_atp.evaluation.records import Record

_COLUMNS = 4
_CELL_INCHES = 3.3
_CAPTION_INCHES = 1.25


@dataclass(frozen=True)
class Failure:
    """One wrong answer.

    dense, dense_right: what the unpruned model said, and whether that was right.
    target_kept: share of the target's patches the model saw; None without a target.
    """

    example: Example
    answer: str
    dense: str
    dense_right: bool
    target_kept: float | None


def find_failures(
    dataset: LabelledDataset, records: Iterable[Record], arm: str, count: int = 16
) -> list[Failure]:
    """Wrong short answers of one arm on clean images.

    Args:
        dataset: the labels.
        records: raw answers.
        arm: name of the arm.
        count: how many; families take turns, pruning's own failures come first.
    """
    examples = {example.line: example for example in dataset.examples}
    per_family: dict[str, list[Failure]] = {}
    for record in sorted(records, key=lambda record: record.line):
        example = examples[record.line]
        if record.condition != CLEAN or dataset.families[example.family] != "exact":
            continue
        pruned, dense = record.arms[arm], record.arms[DENSE].answer
        if score_answer(pruned.answer, example.answer, "exact") == 1.0:
            continue
        dense_right = score_answer(dense, example.answer, "exact") == 1.0
        failure = Failure(example, pruned.answer, dense, dense_right, pruned.target_kept)
        per_family.setdefault(example.family, []).append(failure)
    queues = [sorted(found, key=lambda f: not f.dense_right) for found in per_family.values()]
    turns: list[Failure] = []
    for turn in range(max(map(len, queues), default=0)):
        turns += [queue[turn] for queue in queues if turn < len(queue)]
    return sorted(turns, key=lambda failure: not failure.dense_right)[:count]


def write_failure_sheet(
    dataset: LabelledDataset, failures: list[Failure], arm: str, path: Path
) -> Path | None:
    """Draw failures; None where there are none.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if not failures:
        return None
    rows = -(-len(failures) // _COLUMNS)
    height, width = dataset.read_image(failures[0].example.image).shape[:2]
    figure = new_figure(
        _CELL_INCHES * _COLUMNS, (_CELL_INCHES * height / width + _CAPTION_INCHES) * rows + 0.4
    )
    grid = figure.subplots(rows, _COLUMNS, squeeze=False)
    for axes, failure in zip(grid.flat, failures, strict=False):
        image = dataset.read_image(failure.example.image)
        axes.imshow(image)
        _outline_target(axes, dataset, failure, (image.shape[0], image.shape[1]))
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(_caption(failure, arm), loc="left", fontsize=8.5, family="monospace")
        axes.set_title(_title(failure), loc="left", fontsize=9)
    for axes in grid.flat[len(failures) :]:
        axes.set_visible(False)
    figure.suptitle(f"wrong answers of {arm} (white: patches of what is asked about)", fontsize=11)
    return save(figure, path)


def _outline_target(
    axes: object, dataset: LabelledDataset, failure: Failure, size: tuple[int, int]
) -> None:
    """White squares around the target's patches, on the central square of the image."""
    target = failure.example.target
    if target is None:
        return
    from matplotlib.patches import Rectangle

    height, width = size
    side = min(height, width)
    top, left = (height - side) / 2, (width - side) / 2
    cell_height, cell_width = side / dataset.grid.rows, side / dataset.grid.cols
    for patch in target.nonzero()[0]:
        row, col = divmod(int(patch), dataset.grid.cols)
        corner = (left + col * cell_width - 0.5, top + row * cell_height - 0.5)
        square = Rectangle(corner, cell_width, cell_height, fill=False, ec="white", lw=0.7)
        axes.add_patch(square)  # type: ignore[attr-defined]


def _title(failure: Failure) -> str:
    own = "dense is right" if failure.dense_right else "dense is wrong too"
    kept = "" if failure.target_kept is None else f", {100 * failure.target_kept:.0f} % of it kept"
    return f"{failure.example.family}: {own}{kept}"


def _caption(failure: Failure, arm: str) -> str:
    fields = {
        "Q": failure.example.question,
        "expected": failure.example.answer,
        arm.split("@", 1)[0]: failure.answer or "(empty)",
        "dense": failure.dense or "(empty)",
    }
    lines = (
        textwrap.shorten(f"{name}: {printable(text)}", 92, placeholder=" …")
        for name, text in fields.items()
    )
    return "\n".join(textwrap.fill(line, 40, subsequent_indent="   ") for line in lines)
