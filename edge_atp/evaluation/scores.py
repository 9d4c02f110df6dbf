"""Records -> arrays: one row per question, one column per arm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import DatasetError
from edge_atp.evaluation.answers import normalise_answer, score_answer
from edge_atp.evaluation.arms import DENSE
from edge_atp.evaluation.dataset import LabelledDataset
from edge_atp.evaluation.records import Record

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScoreTable:
    """Everything measured under one condition, Q questions by A arms.

    arms: (A,) names.
    lines: (Q,) line of each question in the data set.
    image_index: (Q,) its image, 0 to I - 1 without gaps.
    families: (Q,) its family.
    short: (Q,) bool, scored by exact match.
    score: (Q, A) in [0, 1] by the family's metric.
    agreement: (Q, A) 1 where the answer is the dense answer; NaN without a dense arm.
    target_kept: (Q, A) share of the target kept; NaN without a target.
    confidence: (Q, A) NaN where an answer has none.
    latency_s: (Q, A).
    """

    arms: tuple[str, ...]
    lines: NDArray[np.int64]
    image_index: NDArray[np.int64]
    families: NDArray[np.str_]
    short: NDArray[np.bool_]
    score: Floats
    agreement: Floats
    target_kept: Floats
    confidence: Floats
    latency_s: Floats

    def column(self, arm: str) -> int:
        """Index of an arm's column."""
        return self.arms.index(arm)


def build_table(
    dataset: LabelledDataset, records: Iterable[Record], condition: str, arms: Sequence[str]
) -> ScoreTable | None:
    """Score the records of one condition.

    Args:
        dataset: the labels.
        records: of any conditions; others are left out.
        condition: which.
        arms: names; every record of the condition must hold all of them.
    Returns:
        None where the condition has no record.
    Raises:
        DatasetError: a record lacks an arm or a line that the data set has not.
    """
    examples = {example.line: example for example in dataset.examples}
    chosen = sorted((r for r in records if r.condition == condition), key=lambda r: r.line)
    if not chosen:
        return None
    for record in chosen:
        if record.line not in examples or any(arm not in record.arms for arm in arms):
            raise DatasetError(
                f"record of line {record.line} ({condition}) does not fit this data set and these"
                " arms; evaluate again into an empty --out"
            )
    asked = [examples[record.line] for record in chosen]
    images: dict[str, int] = {}
    for example in asked:
        images.setdefault(example.image, len(images))
    metrics = [dataset.families[example.family] for example in asked]

    def matrix(rows: Iterable[Sequence[float | None]]) -> Floats:
        return np.array([[np.nan if v is None else v for v in row] for row in rows], np.float64)

    answers = [[record.arms[arm] for arm in arms] for record in chosen]
    return ScoreTable(
        arms=tuple(arms),
        lines=np.array([record.line for record in chosen], np.int64),
        image_index=np.array([images[example.image] for example in asked], np.int64),
        families=np.array([example.family for example in asked]),
        short=np.array([metric == "exact" for metric in metrics]),
        score=matrix(
            [score_answer(a.answer, example.answer, metric) for a in row]
            for row, example, metric in zip(answers, asked, metrics, strict=True)
        ),
        agreement=matrix(_agreement(record, arms) for record in chosen),
        target_kept=matrix([a.target_kept for a in row] for row in answers),
        confidence=matrix([a.confidence for a in row] for row in answers),
        latency_s=matrix([a.latency_s for a in row] for row in answers),
    )


def _agreement(record: Record, arms: Sequence[str]) -> list[float | None]:
    if DENSE not in record.arms:
        return [None] * len(arms)
    dense = normalise_answer(record.arms[DENSE].answer)
    return [float(normalise_answer(record.arms[arm].answer) == dense) for arm in arms]
