"""Labelled data set: a folder of images with one line per question.

    DIR/dataset.json       format_version, split, seed, patch grid, families, SHA-256 of every file
    DIR/questions.jsonl    one question per line, lines of one image together
    DIR/images/*.png       (or any format OpenCV reads)

A line of ``questions.jsonl`` is an object with

    image      path relative to DIR
    question   as typed
    answer     expected answer
    family     key of ``families`` in dataset.json
    target     patches of what is asked about: hex of ``edge_atp.mask.pack_bits``, or null
    choices    optional list, the closed answer set, which must hold ``answer``; it guards the
               label, and questions are asked open
    variants   optional object: name ("paraphrase", "distractor") -> list of other wordings with
               the same answer

``families`` maps each family to the metric that scores it: "exact" or "token_f1". Everything is
checked when the folder is opened. Does not know where a data set comes from; ``dataset_writer``
writes the format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import DatasetError
from edge_atp.evaluation.labels import Example, parse_example
from edge_atp.types import PatchGrid

FORMAT_VERSION = 1
INDEX_FILE = "dataset.json"
QUESTIONS_FILE = "questions.jsonl"
METRICS = ("exact", "token_f1")


@dataclass(frozen=True)
class LabelledDataset:
    """An opened and checked data set.

    path: its folder.
    split, seed: what it was drawn from.
    grid: patch grid of the target masks.
    families: family -> metric.
    examples: in file order; those of one image are adjacent.
    sha256: of questions.jsonl, which identifies the labels.
    """

    path: Path
    split: str
    seed: int
    grid: PatchGrid
    families: dict[str, str]
    examples: tuple[Example, ...]
    sha256: str
    images: tuple[str, ...] = field(default=())

    @classmethod
    def open(cls, path: Path | str, limit: int | None = None) -> LabelledDataset:
        """Read and check a data set.

        Args:
            path: the folder.
            limit: read the first ``limit`` images only; None for all.
        Raises:
            DatasetError: a file is missing, empty, of another version or changed since it was
                written, or a line is mislabelled; names the file and the line.
        """
        folder = Path(path)
        index = _read_index(folder)
        grid = PatchGrid(*_field(folder, index, "patch_grid", list))
        families = _families(folder, index)
        digests = _field(folder, index, "files", dict)
        questions = folder / QUESTIONS_FILE
        if QUESTIONS_FILE not in digests:
            raise DatasetError(
                f"{folder / INDEX_FILE}: files has no entry for {QUESTIONS_FILE}; write it again"
            )
        examples = list(_read_lines(questions, families, grid, digests))
        _check_sha256(questions, digests)
        if len(examples) != index.get("num_questions"):
            raise DatasetError(
                f"{questions}: {len(examples)} lines, but {INDEX_FILE} says num_questions"
                f" {index.get('num_questions')}; write the data set again"
            )
        grouped = [list(group) for _, group in groupby(examples, key=lambda e: e.image)]
        kept = grouped[:limit]
        images = tuple(group[0].image for group in kept)
        for image in images:
            _check_sha256(folder / image, digests, name=image)
        return cls(
            path=folder,
            split=str(index.get("split", "")),
            seed=int(index.get("seed", 0)),
            grid=grid,
            families=families,
            examples=tuple(example for group in kept for example in group),
            sha256=str(digests[QUESTIONS_FILE]),
            images=images,
        )

    def by_image(self) -> Iterator[tuple[str, list[Example]]]:
        """(image path, its questions), in file order."""
        for image, group in groupby(self.examples, key=lambda example: example.image):
            yield image, list(group)

    def read_image(self, image: str) -> NDArray[np.uint8]:
        """One image of the data set, (height, width, 3) uint8 RGB.

        Raises:
            DatasetError: it cannot be decoded.
        """
        encoded = np.fromfile(self.path / image, dtype=np.uint8)
        decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
        if decoded is None:
            raise DatasetError(f"{self.path / image}: not an image that can be decoded")
        rgb: NDArray[np.uint8] = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
        return rgb


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX_FILE
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(
            f"{path.absolute()}: {error.strerror}; a labelled data set is a folder with"
            f" {INDEX_FILE}, {QUESTIONS_FILE} and images"
        ) from error
    except ValueError as error:
        raise DatasetError(f"{path}: not JSON ({error}); write the data set again") from error
    version = index.get("format_version") if isinstance(index, dict) else None
    if version != FORMAT_VERSION:
        raise DatasetError(
            f"{path}: format_version is {version!r}; this version reads {FORMAT_VERSION}"
        )
    return dict(index)


def _field(folder: Path, index: dict[str, Any], name: str, kind: type) -> Any:
    value = index.get(name)
    if not isinstance(value, kind):
        raise DatasetError(
            f"{folder / INDEX_FILE}: {name} is {value!r}; expected a {kind.__name__}"
        )
    return value


def _families(folder: Path, index: dict[str, Any]) -> dict[str, str]:
    families: dict[str, str] = _field(folder, index, "families", dict)
    for family, metric in families.items():
        if metric not in METRICS:
            raise DatasetError(
                f"{folder / INDEX_FILE}: families.{family} is {metric!r};"
                f" choose a metric from {', '.join(METRICS)}"
            )
    return families


def _read_lines(
    path: Path, families: dict[str, str], grid: PatchGrid, digests: dict[str, str]
) -> Iterator[Example]:
    try:
        # Not splitlines: it would also cut at Unicode separators inside a question.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); write the data set again") from error
    if lines == [""]:
        raise DatasetError(f"{path}: empty; a data set needs at least one question")
    finished: set[str] = set()
    previous = ""
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        example = parse_example(line, where, families, grid)
        if example.image not in digests:
            raise DatasetError(f"{where}: image {example.image!r} is not listed in {INDEX_FILE}")
        if example.image != previous:
            if example.image in finished:
                raise DatasetError(
                    f"{where}: questions about {example.image!r} are not together; sort the lines"
                    " by image"
                )
            finished.add(previous)
            previous = example.image
        yield example


def _check_sha256(path: Path, digests: dict[str, str], name: str | None = None) -> None:
    try:
        found = file_sha256(path)
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}; copy the whole data set") from error
    expected = digests[name or path.name]
    if found != expected:
        raise DatasetError(
            f"{path}: SHA-256 is {found[:16]}…, {INDEX_FILE} says {str(expected)[:16]}…;"
            " the file was changed or cut short, write the data set again"
        )
