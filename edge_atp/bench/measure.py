"""Alternating runs and what they add up to: medians, spread, ratios within a round.

Every contender runs once a round, so that a machine that gets busy disturbs all of them alike, and
ratios are taken within a round before their median. Wall time is what a robot waits for; process
CPU time is what other load on the machine disturbs least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edge_atp.bench.questions import Question

Json = dict[str, "Json"] | list["Json"] | str | float | int | bool | None


@dataclass(frozen=True)
class Run:
    """One answer.

    wall_ms, cpu_ms: of the whole answer; stages_ms and stages_cpu_ms of its parts.
    compared_wall_ms, compared_cpu_ms: without preprocessing, which Hugging Face's ``generate``
        does not include.
    peak_bytes: resident memory's high-water mark during the run.
    kv_bytes: keys and values held when the answer was there, 0 where unknown.
    """

    wall_ms: float
    cpu_ms: float
    token_ids: tuple[int, ...]
    compared_wall_ms: float
    compared_cpu_ms: float
    text: str = ""
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    stages_cpu_ms: Mapping[str, float] = field(default_factory=dict)
    visual_kept: int = 0
    visual_total: int = 0
    text_tokens: int = 0
    peak_bytes: int = 0
    kv_bytes: int = 0


class Contender(Protocol):
    """Something that answers a question about a picture."""

    name: str

    def answer(self, question: Question, picture: int) -> Run:
        """Answer once; ``picture`` is an index into the pictures it was made with."""


@dataclass(frozen=True)
class Timed:
    """A run with what it was asked, and in which round."""

    contender: str
    question: Question
    picture: int
    round: int
    run: Run


def alternate(
    contenders: Sequence[Contender], questions: Sequence[Question], pictures: int, rounds: int
) -> Iterator[Timed]:
    """Every contender on every question and picture, ``rounds`` times; the first round, which
    loads and tunes, is numbered -1.

    The order of the contenders turns from round to round, so that none always runs behind the
    same neighbour.
    """
    for number in range(-1, rounds):
        turn = (number + 1) % len(contenders)
        order = [*contenders[turn:], *contenders[:turn]]
        for picture in range(pictures):
            for question in questions:
                for contender in order:
                    run = contender.answer(question, picture)
                    yield Timed(contender.name, question, picture, number, run)


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """Median, quartiles, smallest and how many."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {
        "median": round(float(middle), 4),
        "q25": round(float(low), 4),
        "q75": round(float(high), 4),
        "min": round(float(min(values)), 4),
        "runs": len(values),
    }


def ratios(
    timed: Sequence[Timed], slower: str, faster: str, value: Callable[[Run], float]
) -> dict[str, float | int] | None:
    """How many times faster one contender is, from pairs of the same round and question.

    Returns:
        ``spread`` of value(slower) / value(faster); None without a pair.
    """
    found: dict[tuple[object, ...], dict[str, float]] = {}
    for entry in timed:
        if entry.round >= 0 and entry.contender in (slower, faster):
            key = (entry.round, entry.picture, entry.question)
            found.setdefault(key, {})[entry.contender] = value(entry.run)
    pairs = [pair for pair in found.values() if len(pair) == (2 if slower != faster else 1)]
    return spread([pair[slower] / pair[faster] for pair in pairs]) if pairs else None
