"""The standing questions a node holds, and how each has fared."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from builtin_interfaces.msg import Time
from edge_atp_msgs.msg import Answer, QueryStatus
from edge_atp_msgs.msg import Query as QueryMessage
from std_msgs.msg import Header

from edge_atp.errors import InvalidQueryError
from edge_atp_ros.convert import to_duration
from edge_atp_ros.questions import Intake, Question
from edge_atp_ros.reception import Reception
from edge_atp_ros.turns import Skips
from edge_atp_ros.worker import Worker

_RATE_WINDOW_S = 5.0
_COMPLETE = frozenset({Answer.STATUS_FINAL, Answer.STATUS_TRUNCATED})


@dataclass
class _Record:
    """What became of one standing question.

    answered_s: ``time.monotonic()`` of its newest complete answers.
    """

    question: Question
    message: QueryMessage
    accepted: Time
    last_header: Header = field(default_factory=Header)
    last_status: int = 0
    last_error_code: int = 0
    answered: int = 0
    expired: int = 0
    failed: int = 0
    answered_s: deque[float] = field(default_factory=lambda: deque(maxlen=256))

    def add(self, answer: Answer) -> None:
        self.last_status, self.last_error_code = answer.status, answer.error_code
        if answer.status in _COMPLETE:
            self.last_header = answer.header
            self.answered += 1
            self.answered_s.append(time.monotonic())
        elif answer.status == Answer.STATUS_EXPIRED:
            self.expired += 1
        elif answer.status == Answer.STATUS_ERROR:
            self.failed += 1

    def status(self, skips: Skips) -> QueryStatus:
        return QueryStatus(
            query=self.message,
            accepted=self.accepted,
            last_header=self.last_header,
            last_status=self.last_status,
            last_error_code=self.last_error_code,
            answered=self.answered,
            expired=self.expired,
            failed=self.failed,
            frames_dropped=skips.own + skips.others,
            rate=self._rate_hz(),
        )

    def _rate_hz(self) -> float:
        now_s = time.monotonic()
        times_s = [at for at in self.answered_s if now_s - at <= _RATE_WINDOW_S]
        if len(times_s) < 2:
            return 0.0
        return (len(times_s) - 1) / max(times_s[-1] - times_s[0], 1e-9)


class StandingQuestions:
    """Sets, removes and lists standing questions. May be used from several threads.

    Args:
        reception: checks them.
        worker: asks them.
        now: the ROS clock.
    """

    def __init__(
        self,
        reception: Reception,
        worker: Worker,
        intake: Intake,
        now: Callable[[], Time],
    ) -> None:
        self._reception = reception
        self._worker = worker
        self._intake = intake
        self._now = now
        self._records: dict[str, _Record] = {}
        self._lock = threading.Lock()

    def set(self, message: QueryMessage) -> tuple[str, bool]:
        """Add a standing question, or replace the one of its id.

        Returns:
            Its id, and whether it replaced one.
        Raises:
            EdgeAtpError: it cannot be held or answered as asked; nothing was changed.
        """
        question = self._reception.admit_standing(message)
        record = _Record(question, _filled_in(message, question), self._now())
        with self._lock:
            replaced = self._worker.hold(question)
            self._records[question.query_id] = record
        return question.query_id, replaced

    def set_all(self, messages: Iterable[QueryMessage]) -> None:
        """Add several, as from a file.

        Raises:
            EdgeAtpError: see ``set``; those before it have been added.
        """
        for message in messages:
            self.set(message)

    def remove(self, query_id: str) -> None:
        """Remove one; its answer under way is cancelled.

        Raises:
            InvalidQueryError: there is no such question; names those there are.
        """
        with self._lock:
            following = self._worker.release(query_id)
            if following is None:
                known = ", ".join(sorted(self._records)) or "none"
                raise InvalidQueryError(
                    f"query_id is {query_id[:200]!r}; the standing questions are: {known}"
                )
            del self._records[query_id]
        self._intake.resume(query_id, following)

    def record(self, question: Question, answer: Answer) -> None:
        """Note a final answer; those to other questions are ignored."""
        with self._lock:
            record = self._records.get(question.query_id)
            # The last answer to a question that was replaced is not the new one's.
            if record is not None and record.question.query is question.query:
                record.add(answer)

    def statuses(self) -> list[QueryStatus]:
        """All of them, by id."""
        with self._lock:
            skips = self._worker.skips()
            return [
                record.status(skips.get(query_id, Skips()))
                for query_id, record in sorted(self._records.items())
            ]


def _filled_in(message: QueryMessage, question: Question) -> QueryMessage:
    """The message as accepted: with its id, its cameras and its limit of age."""
    message.query_id = question.query_id
    message.cameras = list(question.cameras)
    message.max_frame_age = to_duration(question.max_frame_age_s)
    return message
