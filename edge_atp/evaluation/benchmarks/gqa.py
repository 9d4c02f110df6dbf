"""GQA: question files and exact match.

Files as published (``testdev_balanced_questions.json`` and others): an object from question id to
question. Results as the official evaluation takes them: a list of
``{"questionId": str, "prediction": str}``. Images are ``<imageId>.jpg``. Consistency, validity,
plausibility and grounding of the official suite are not computed: they need the entailed
questions, choices and scene graphs beside.
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

INSTRUCTION = "Answer the question using a single word or phrase."


def read_items(questions: Path, instruction: str = INSTRUCTION) -> list[BenchmarkItem]:
    """The questions of a question file.

    Raises:
        DatasetError: not a question file; names the question.
    """
    return [
        BenchmarkItem(
            key=key,
            image=f"{field(questions, entry, number, 'imageId', str)}.jpg",
            question=f"{field(questions, entry, number, 'question', str)}\n{instruction}",
        )
        for number, (key, entry) in enumerate(_questions(questions).items(), start=1)
    ]


def read_results(path: Path) -> dict[int | str, str]:
    """Predictions by question id."""
    return {
        field(path, entry, number, "questionId", str): field(path, entry, number, "prediction", str)
        for number, entry in enumerate(entries(path, read_json(path), ""), start=1)
    }


def to_results(answers: dict[int | str, str]) -> list[dict[str, Any]]:
    """Answers as the results file lists them: the answers of GQA are lower case, without a full
    stop, and the official comparison is literal, so that is how predictions are written."""
    return [{"questionId": key, "prediction": tidy(answer)} for key, answer in answers.items()]


def tidy(answer: str) -> str:
    """Lower case, no full stop at the end."""
    return answer.strip().lower().rstrip(".").strip()


def score(questions: Path, answers: dict[int | str, str], partial: bool = False) -> dict[str, Any]:
    """Exact match in percent over the balanced questions, as the official evaluation counts them.

    Args:
        questions: the question file; each has ``answer``, ``isBalanced`` and ``types``.
        answers: predictions as in the results file, compared literally.
        partial: score the questions that were answered; otherwise all must be.
    Returns:
        overall, binary and open accuracy (open: structural type "query"), and by structural and
        semantic type.
    Raises:
        DatasetError: questions are malformed, or answers are missing or not asked for.
    """
    every = _questions(questions)
    asked = match_results(questions, set(every), answers, partial)
    overall: list[float] = []
    groups: dict[str, dict[str, list[float]]] = {
        name: defaultdict(list) for name in ("kind", "structural", "semantic")
    }
    for number, (key, entry) in enumerate(every.items(), start=1):
        if key not in asked or not entry.get("isBalanced", True):
            continue
        right = float(answers[key] == field(questions, entry, number, "answer", str))
        types = field(questions, entry, number, "types", dict)
        overall.append(right)
        groups["kind"]["open" if types.get("structural") == "query" else "binary"].append(right)
        for name in ("structural", "semantic"):
            groups[name][str(types.get(name))].append(right)
    if not overall:
        raise DatasetError(f"{questions}: no balanced question to score")
    means = {
        group: {name: _percent(values) for name, values in sorted(found.items())}
        for group, found in groups.items()
    }
    return {
        "metric": "exact match, %",
        "overall": _percent(overall),
        **means.pop("kind"),
        **{f"per_{group}_type": found for group, found in means.items()},
        "questions": len(overall),
    }


def _questions(path: Path) -> dict[str, dict[str, Any]]:
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise DatasetError(f"{path}: must be an object from question id to question, not empty")
    for key, entry in content.items():
        if not isinstance(entry, dict):
            raise DatasetError(f"{path}: question {key}: {entry!r} is no object")
    return content


def _percent(values: list[float]) -> float:
    return 100.0 * sum(values) / len(values)
