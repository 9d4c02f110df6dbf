"""Write the labelled data set format of ``dataset``: images, questions, checksums.

Knows nothing of where images and questions come from.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import DatasetError
from edge_atp.evaluation.dataset import (
    FORMAT_VERSION,
    INDEX_FILE,
    METRICS,
    QUESTIONS_FILE,
    file_sha256,
)
from edge_atp.evaluation.labels import Example
from edge_atp.types import PatchGrid


class DatasetWriter:
    """Collects images with their questions; ``finish`` makes the folder readable.

    Args:
        path: folder to write; must not hold a data set yet.
        split, seed: what the data was drawn from.
        grid: patch grid of the target masks.
        families: family -> metric, "exact" or "token_f1".
    Raises:
        DatasetError: the folder already holds a data set, or a metric is unknown.
    """

    def __init__(
        self, path: Path, split: str, seed: int, grid: PatchGrid, families: dict[str, str]
    ) -> None:
        if (path / INDEX_FILE).exists():
            raise DatasetError(f"{path} already holds a data set; choose another folder")
        if unknown := sorted(set(families.values()) - set(METRICS)):
            raise DatasetError(
                f"families use metric {', '.join(unknown)}; choose from {', '.join(METRICS)}"
            )
        self._path = path
        self._header = {"split": split, "seed": seed}
        self._grid = grid
        self._families = families
        self._files: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self._lines: list[str] = []
        (path / "images").mkdir(parents=True, exist_ok=True)

    def add(self, name: str, image: NDArray[np.uint8], examples: Sequence[Example]) -> None:
        """Write one image (height, width, 3) uint8 RGB as PNG, and its questions.

        ``image`` and ``line`` of the examples are replaced by this image's path and the line
        they get. An image without a question is not written.
        """
        if not examples:
            return
        relative = f"images/{name}.png"
        path = self._path / relative
        if not cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
            raise DatasetError(f"cannot write {path}")
        self._files[relative] = file_sha256(path)
        for example in examples:
            if example.family not in self._families:
                raise DatasetError(
                    f"family {example.family!r} is not one of {', '.join(self._families)}"
                )
            if example.target is not None and example.target.shape != (self._grid.num_patches,):
                raise DatasetError(
                    f"target has shape {example.target.shape}; expected"
                    f" ({self._grid.num_patches},), one bool per patch"
                )
            entry = example.to_json() | {"image": relative}
            self._lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
            self._counts[example.family] += 1

    def finish(self) -> Path:
        """Write ``questions.jsonl`` and ``dataset.json``; returns the folder.

        Raises:
            DatasetError: nothing was added.
        """
        if not self._counts:
            raise DatasetError(f"{self._path}: no question was added; nothing to evaluate")
        questions = self._path / QUESTIONS_FILE
        questions.write_text("".join(self._lines), encoding="utf-8")
        index = {
            "format_version": FORMAT_VERSION,
            **self._header,
            "patch_grid": [self._grid.rows, self._grid.cols],
            "num_images": len(self._files),
            "num_questions": sum(self._counts.values()),
            "families": self._families,
            "questions_per_family": dict(sorted(self._counts.items())),
            "files": {QUESTIONS_FILE: file_sha256(questions), **self._files},
        }
        (self._path / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        return self._path
