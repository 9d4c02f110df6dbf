"""COCO captions: annotation and result files, and CIDEr-D.

Files as published: ``captions_val2014.json`` with ``images`` and ``annotations``; results as the
server takes them, a list of ``{"image_id": int, "caption": str}``.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from edge_atp.evaluation.benchmarks.cider import cider_d
from edge_atp.evaluation.benchmarks.files import (
    BenchmarkItem,
    entries,
    field,
    match_results,
    read_json,
)

INSTRUCTION = "Provide a one-sentence caption for the provided image."


def read_items(annotations: Path, instruction: str = INSTRUCTION) -> list[BenchmarkItem]:
    """The images of an annotation file.

    Raises:
        DatasetError: not an annotation file; names the entry.
    """
    return [
        BenchmarkItem(
            key=field(annotations, entry, number, "id", int),
            image=field(annotations, entry, number, "file_name", str),
            question=instruction,
        )
        for number, entry in enumerate(
            entries(annotations, read_json(annotations), "images"), start=1
        )
    ]


def read_results(path: Path) -> dict[int | str, str]:
    """Captions by image id."""
    return {
        field(path, entry, number, "image_id", int): field(path, entry, number, "caption", str)
        for number, entry in enumerate(entries(path, read_json(path), ""), start=1)
    }


def to_results(answers: dict[int | str, str]) -> list[dict[str, Any]]:
    """Captions as the results file lists them."""
    return [{"image_id": key, "caption": answer} for key, answer in answers.items()]


def score(
    annotations: Path, answers: dict[int | str, str], partial: bool = False
) -> dict[str, Any]:
    """CIDEr-D, mean over images; 1.0 here is what papers print as 100.

    Document frequencies are counted over the images that are scored, as in the reference.
    Args:
        annotations: the annotation file.
        answers: captions by image id.
        partial: score the images that were captioned; otherwise all must be.
    Raises:
        DatasetError: annotations are malformed, or captions are missing or not asked for.
    """
    references: dict[int, list[str]] = defaultdict(list)
    listed = entries(annotations, read_json(annotations), "annotations")
    for number, entry in enumerate(listed, start=1):
        image = field(annotations, entry, number, "image_id", int)
        references[image].append(field(annotations, entry, number, "caption", str))
    asked = match_results(annotations, set(references), answers, partial)
    images = [image for image in references if image in asked]
    scores = cider_d([answers[image] for image in images], [references[image] for image in images])
    return {"metric": "CIDEr-D", "overall": sum(scores) / len(scores), "images": len(images)}
