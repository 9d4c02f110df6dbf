"""A question on its way through the node: its conditions, its frames, and who may answer it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from edge_atp.types import Query
from edge_atp_ros.frames import CameraImage, FrameSet
from edge_atp_ros.reply import Reply


@dataclass(frozen=True)
class Question:
    """A question that waits for its answer.

    query: what the pipeline gets.
    cameras: names, in the order the model sees them.
    accepted_s: ``time.perf_counter()`` on arrival; of a standing question, when its frame arrived.
    max_frame_age_s, deadline_s: 0 means no limit.
    priority: higher is served first.
    sequence: number of this question among those of the same id; of a standing one, of its frame.
    dropped_before: frames that each camera had dropped when counting began.
    images: given with the question; empty: the cameras' newest.
    reply: the client to tell besides the topics.
    standing, max_rate_hz: asked again and again, at most this often (0: every frame).
    frames: chosen when its turn came; None: no image came in time.
    late: its deadline cannot be met.
    skipped: frames passed over since the previous answer to this standing question.
    """

    query: Query
    cameras: tuple[str, ...]
    accepted_s: float
    max_frame_age_s: float = 0.0
    deadline_s: float = 0.0
    priority: int = 0
    sequence: int = 0
    dropped_before: Mapping[str, int] = field(default_factory=dict)
    images: tuple[CameraImage, ...] = ()
    reply: Reply | None = None
    standing: bool = False
    max_rate_hz: float = 0.0
    frames: FrameSet | None = None
    late: bool = False
    skipped: int = 0
    _unanswered: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)
    _withdrawn: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)

    @property
    def query_id(self) -> str:
        """The client's id, or the one that was assigned."""
        return self.query.query_id

    def claim(self) -> bool:
        """True exactly once: whoever gets it publishes the final answer.

        The watchdog and a thread that was stuck may both want to. Copies made by
        ``dataclasses.replace`` share the claim.
        """
        return self._unanswered.acquire(blocking=False)

    def fresh(self, accepted_s: float, sequence: int, skipped: int) -> Question:
        """A copy of a standing question for one frame, with a claim of its own."""
        return replace(
            self,
            accepted_s=accepted_s,
            sequence=sequence,
            skipped=skipped,
            _unanswered=threading.Lock(),
            _withdrawn=threading.Event(),
        )

    def withdraw(self) -> None:
        """The answer is no longer wanted."""
        self._withdrawn.set()

    def canceled(self) -> bool:
        """Whether the answer is no longer wanted."""
        return self._withdrawn.is_set() or (self.reply is not None and self.reply.canceled())

    def unwanted(self) -> bool:
        """Whether going on is of no use: cancelled, or past its deadline."""
        return self.expires_in_s() < 0 or self.canceled()

    @property
    def expires_s(self) -> float | None:
        """``time.perf_counter()`` of the deadline, None without one."""
        return self.accepted_s + self.deadline_s if self.deadline_s > 0 else None

    def expires_in_s(self) -> float:
        """Seconds until the deadline, negative after it; infinite without one."""
        expires_s = self.expires_s
        return float("inf") if expires_s is None else expires_s - time.perf_counter()
