"""One line of a labelled data set: what it holds and what makes it wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import DatasetError
from edge_atp.evaluation.answers import normalise_answer
from edge_atp.mask import pack_bits
from edge_atp.types import PatchGrid

_REQUIRED = ("image", "question", "answer", "family")
_KNOWN = (*_REQUIRED, "target", "choices", "variants")


@dataclass(frozen=True)
class Example:
    """One question about one image.

    line: number in questions.jsonl, from 1; identifies the question.
    target: (N,) bool, patches of what is asked about; None where nothing is (an absent object).
    variants: name -> other wordings with the same answer.
    """

    line: int
    image: str
    question: str
    answer: str
    family: str
    target: NDArray[np.bool_] | None = None
    choices: tuple[str, ...] = ()
    variants: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The line's object, without its number."""
        entry: dict[str, Any] = {name: getattr(self, name) for name in _REQUIRED}
        entry["target"] = None if self.target is None else pack_bits(self.target).tobytes().hex()
        if self.choices:
            entry["choices"] = list(self.choices)
        if self.variants:
            entry["variants"] = {name: list(texts) for name, texts in self.variants.items()}
        return entry


def parse_example(line: str, where: str, families: dict[str, str], grid: PatchGrid) -> Example:
    """Read one line.

    Args:
        line: JSON text.
        where: "file:line" for messages; the number after the last colon becomes ``line``.
        families: allowed families.
        grid: patch grid of the target.
    Raises:
        DatasetError: names ``where``, the field, the value and what is allowed.
    """
    entry = _parse_object(line, where)
    for name in _REQUIRED:
        value = entry.get(name)
        if not isinstance(value, str) or not value.strip():
            raise DatasetError(f"{where}: {name} is {value!r}; expected a text that is not empty")
    if entry["family"] not in families:
        raise DatasetError(
            f"{where}: family is {entry['family']!r}; dataset.json lists {', '.join(families)}"
        )
    choices = _texts(entry.get("choices", []), f"{where}: choices")
    if choices and normalise_answer(entry["answer"]) not in map(normalise_answer, choices):
        raise DatasetError(
            f"{where}: answer {entry['answer']!r} is not among choices {', '.join(choices)}"
        )
    variants = entry.get("variants", {})
    if not isinstance(variants, dict):
        raise DatasetError(f"{where}: variants is {variants!r}; expected an object of lists")
    return Example(
        line=int(where.rsplit(":", 1)[1]),
        image=entry["image"],
        question=entry["question"],
        answer=entry["answer"],
        family=entry["family"],
        target=_parse_target(entry.get("target"), where, grid),
        choices=choices,
        variants={
            name: _texts(texts, f"{where}: variants.{name}") for name, texts in variants.items()
        },
    )


def _parse_object(line: str, where: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise DatasetError(f"{where}: not JSON ({error})") from error
    if not isinstance(entry, dict):
        raise DatasetError(f"{where}: expected an object, got {type(entry).__name__}")
    if unknown := [name for name in entry if name not in _KNOWN]:
        raise DatasetError(
            f"{where}: unknown field {', '.join(unknown)}; known: {', '.join(_KNOWN)}"
        )
    return entry


def _parse_target(value: Any, where: str, grid: PatchGrid) -> NDArray[np.bool_] | None:
    if value is None:
        return None
    num_bytes = -(-grid.num_patches // 8)
    try:
        packed = np.frombuffer(bytes.fromhex(value), dtype=np.uint8)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{where}: target is {value!r}; expected hex of packed bits") from error
    if len(packed) != num_bytes:
        raise DatasetError(
            f"{where}: target has {len(packed)} bytes; {grid.rows} x {grid.cols} patches take"
            f" {num_bytes}"
        )
    bits = np.unpackbits(packed, count=grid.num_patches, bitorder="big").astype(np.bool_)
    if not bits.any():
        raise DatasetError(f"{where}: target marks no patch; write null where there is no target")
    return bits


def _texts(value: Any, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(t, str) and t.strip() for t in value):
        raise DatasetError(f"{what} is {value!r}; expected a list of texts")
    return tuple(value)
