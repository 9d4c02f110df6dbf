"""What the benchmark readers share: items to ask, and JSON files with messages that help."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_atp.errors import DatasetError


@dataclass(frozen=True)
class BenchmarkItem:
    """One question to answer.

    key: the benchmark's own id of the question or image, as its results file writes it.
    image: file name or path relative to the image folder.
    question: as asked, with the benchmark's usual instruction.
    """

    key: int | str
    image: str
    question: str


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        DatasetError: missing, empty or not JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error
    if not text.strip():
        raise DatasetError(f"{path}: empty file")
    try:
        return json.loads(text)
    except ValueError as error:
        raise DatasetError(f"{path}: not JSON ({error})") from error


def entries(path: Path, content: Any, name: str) -> list[dict[str, Any]]:
    """The list ``name`` of a JSON object, or the content itself where ``name`` is empty.

    Raises:
        DatasetError: it is no list of objects, or it is empty.
    """
    found = content.get(name) if name and isinstance(content, dict) else content
    where = f"{path}: {name or 'the file'}"
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise DatasetError(f"{where} must be a list of objects")
    if not found:
        raise DatasetError(f"{where} is an empty list")
    return found


def field(path: Path, entry: dict[str, Any], number: int, name: str, kind: type) -> Any:
    """``entry[name]`` checked to be of a type; ``number`` counts entries from 1.

    Raises:
        DatasetError: names file, entry and field.
    """
    value = entry.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DatasetError(f"{path}: entry {number}: {name} is {value!r}; expected {kind.__name__}")
    return value


def match_results(
    path: Path, expected: set[Any], given: dict[Any, str], partial: bool = False
) -> set[Any]:
    """Keys to score: all that the benchmark has or, with ``partial``, those that were answered.

    Raises:
        DatasetError: names the first missing or unknown key, or nothing was answered.
    """
    if unknown := given.keys() - expected:
        raise DatasetError(f"{path}: {min(unknown, key=str)!r} was answered, but is not asked")
    missing = expected - given.keys()
    if (missing and not partial) or not given:
        raise DatasetError(
            f"{path}: {len(missing)} of {len(expected)} answers are missing, such as"
            f" {min(missing, key=str)!r}"
        )
    return set(given)
