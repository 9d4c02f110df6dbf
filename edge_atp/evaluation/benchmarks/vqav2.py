"""VQAv2: question and annotation files, and VQA accuracy.

Files as published: ``v2_OpenEnded_mscoco_val2014_questions.json`` and
``v2_mscoco_val2014_annotations.json``; results as the server takes them, a list of
``{"question_id": int, "answer": str}``. Images are ``COCO_<subset>_<id of 12 digits>.jpg``.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from edge_atp.errors import DatasetError
from edge_atp.evaluation.benchmarks.files import (
    BenchmarkItem,
    entries,
    field,
    match_results,
    read_json,
)
from edge_atp.evaluation.benchmarks.vqa_text import normalise, tidy

INSTRUCTION = "Answer the question using a single word or phrase."
_NEEDED = 3  # people who must agree for full marks


def read_items(questions: Path, instruction: str = INSTRUCTION) -> list[BenchmarkItem]:
    """The questions of a question file.

    Raises:
        DatasetError: not a question file; names the entry.
    """
    content = read_json(questions)
    listed = entries(questions, content, "questions")
    subset = content.get("data_subtype", "")
    items = []
    for number, entry in enumerate(listed, start=1):
        image_id = field(questions, entry, number, "image_id", int)
        items.append(
            BenchmarkItem(
                key=field(questions, entry, number, "question_id", int),
                image=f"COCO_{subset}_{image_id:012d}.jpg",
                question=f"{field(questions, entry, number, 'question', str)}\n{instruction}",
            )
        )
    return items


def read_results(path: Path) -> dict[int | str, str]:
    """Answers by question id."""
    return {
        field(path, entry, number, "question_id", int): field(path, entry, number, "answer", str)
        for number, entry in enumerate(entries(path, read_json(path), ""), start=1)
    }


def to_results(answers: dict[int | str, str]) -> list[dict[str, Any]]:
    """Answers as the results file lists them."""
    return [{"question_id": key, "answer": answer} for key, answer in answers.items()]


def vqa_accuracy(answer: str, references: list[str]) -> float:
    """Accuracy of one answer against ten people's.

    Every person is left out in turn; the answer scores min(n / 3, 1) where n of the others gave
    it. Answers are normalised unless all people wrote the same.
    Args:
        answer: as generated.
        references: the people's answers.
    Returns:
        [0, 1].
    """
    references = [tidy(reference) for reference in references]
    answer = tidy(answer)
    if len(set(references)) > 1:
        references = [normalise(reference) for reference in references]
        answer = normalise(answer)
    same = references.count(answer)
    # Leaving out a person who agrees leaves one fewer.
    with_agreeing_out = min(1.0, max(same - 1, 0) / _NEEDED)
    with_other_out = min(1.0, same / _NEEDED)
    share = same / len(references)
    return share * with_agreeing_out + (1.0 - share) * with_other_out


def score(
    annotations: Path, answers: dict[int | str, str], partial: bool = False
) -> dict[str, Any]:
    """VQA accuracy in percent: overall, by answer type and by question type.

    Args:
        annotations: the annotation file.
        answers: by question id.
        partial: score the questions that were answered; otherwise all must be.
    Raises:
        DatasetError: annotations are malformed, or answers are missing or not asked for.
    """
    overall: list[float] = []
    groups: dict[str, dict[str, list[float]]] = {
        "answer_type": defaultdict(list),
        "question_type": defaultdict(list),
    }
    listed = entries(annotations, read_json(annotations), "annotations")
    by_id = {
        field(annotations, entry, number, "question_id", int): entry
        for number, entry in enumerate(listed, start=1)
    }
    asked = match_results(annotations, set(by_id), answers, partial)
    for number, (key, entry) in enumerate(by_id.items(), start=1):
        if key not in asked:
            continue
        accuracy = vqa_accuracy(answers[key], _references(annotations, number, entry))
        overall.append(accuracy)
        for group, accuracies in groups.items():
            accuracies[str(entry.get(group, ""))].append(accuracy)
    return {
        "metric": "VQA accuracy, %",
        "overall": _percent(overall),
        **{
            f"per_{group}": {name: _percent(values) for name, values in sorted(found.items())}
            for group, found in groups.items()
        },
        "questions": len(overall),
    }


def _references(path: Path, number: int, entry: dict[str, Any]) -> list[str]:
    given = field(path, entry, number, "answers", list)
    if not given or not all(
        isinstance(a, dict) and isinstance(a.get("answer"), str) for a in given
    ):
        raise DatasetError(f"{path}: entry {number}: answers must list objects with an answer")
    return [a["answer"] for a in given]


def _percent(values: list[float]) -> float:
    return 100.0 * sum(values) / len(values)
