"""The scheduler's vocabulary: what it knows of a question, what a turn is, who yields to whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Schedulable(Protocol):
    """What the scheduler needs to know of a question."""

    @property
    def query_id(self) -> str:
        """Unique among the questions held."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """In the order the model sees them."""

    @property
    def priority(self) -> int:
        """Higher goes first."""

    @property
    def deadline_s(self) -> float:
        """Seconds from acceptance (of a standing question: from the frame); 0: none."""

    @property
    def max_rate_hz(self) -> float:
        """Of a standing question; 0: every frame."""


Q = TypeVar("Q", bound=Schedulable)
F = TypeVar("F")


@dataclass(frozen=True)
class Turn(Generic[Q, F]):
    """What to do next.

    frames: what to answer about; None: no image came in time.
    waiting_since_s: when the question, or the frame of a standing one, arrived.
    ordinal: number of the frame among those offered to a standing question; 0 for one asked once.
    skipped: frames offered to it and passed over since its previous turn.
    late: its deadline cannot be met; nothing but saying so is left to do.
    """

    question: Q
    standing: bool
    frames: F | None
    waiting_since_s: float
    ordinal: int = 0
    skipped: int = 0
    late: bool = False


@dataclass
class Skips:
    """What became of the frames of a standing question's cameras since it was accepted.

    offered: frames it could have been answered about.
    turns: frames it was given a turn for.
    own: passed over because its own previous answer was not finished.
    others: passed over because other questions went first.
    rate: not offered, because ``max_rate_hz`` had been reached.
    """

    offered: int = 0
    turns: int = 0
    own: int = 0
    others: int = 0
    rate: int = 0


class Contest:
    """Counts the turns somebody was passed over for; the last of ``every`` is theirs."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._passed = 0

    def goes_to_other(self, contested: bool) -> bool:
        """Whether the turn goes to the one who would be passed over."""
        self._passed = self._passed + 1 if contested else 0
        if self._passed < self._every:
            return False
        self._passed = 0
        return True
