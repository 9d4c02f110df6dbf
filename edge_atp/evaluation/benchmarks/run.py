"""Answer a benchmark's questions with a pipeline; one encoding for all questions about one image.

Writes the results file that the benchmark's server takes. Knows the benchmarks only through what
their modules share.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import cv2
import numpy as np
from rich.progress import track

from edge_atp.errors import ImageError
from edge_atp.evaluation.benchmarks.files import BenchmarkItem
from edge_atp.evaluation.encodings import ImageEncodings
from edge_atp.pipeline import Pipeline
from edge_atp.types import Frame, PruneSpec, Query

BENCHMARKS = ("vqav2", "gqa", "coco_captions")

Answers = dict[int | str, str]


class Benchmark(Protocol):
    """What each benchmark's module offers."""

    def read_items(self, path: Path) -> list[BenchmarkItem]:
        """The questions of a file."""

    def read_results(self, path: Path) -> Answers:
        """Answers of a results file."""

    def to_results(self, answers: Answers) -> list[dict[str, Any]]:
        """Answers in the form of a results file."""

    def score(self, path: Path, answers: Answers, partial: bool = False) -> dict[str, Any]:
        """The official metrics."""


def load(name: str) -> Benchmark:
    """The module of one of ``BENCHMARKS``."""
    return cast(Benchmark, importlib.import_module(f"edge_atp.evaluation.benchmarks.{name}"))


def answer_items(
    pipeline: Pipeline, items: Sequence[BenchmarkItem], images: Path, prune: PruneSpec
) -> Answers:
    """Ask every item.

    Args:
        pipeline: a loaded model.
        items: asked sorted by image, so that one encoding serves all its questions.
        images: folder of the image files.
        prune: method and budget.
    Raises:
        ImageError: an image is missing or cannot be decoded.
        EdgeAtpError: the pipeline refused a question.
    """
    answers: Answers = {item.key: "" for item in items}
    shown, encodings = "", None
    for item in track(sorted(items, key=lambda item: item.image), description="answering"):
        if encodings is None or item.image != shown:
            shown = item.image
            encodings = ImageEncodings(pipeline, _read(images / item.image))
        query = Query(item.question, prune=prune)
        encoding, _ = encodings.wanted_by(query)
        answer = pipeline.answer(query, [encoding])
        answers[item.key] = answer.text
    return answers


def write_results(benchmark: Benchmark, answers: Answers, path: Path) -> None:
    """Write the results file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(benchmark.to_results(answers)) + "\n", encoding="utf-8")


def _read(path: Path) -> Frame:
    try:
        encoded = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise ImageError(f"cannot read image {path}: {error.strerror}") from error
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
    if decoded is None:
        raise ImageError(f"{path} is not an image that can be decoded")
    return Frame(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB))
