"""One thread that answers questions one after the other, and the bounded queue before it.

Every question handed in is handed out exactly once: to ``serve``, or, once stopping, to
``cancel``. Knows nothing of ROS.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable

from edge_atp.errors import InvalidQueryError
from edge_atp_ros.error_codes import RejectedError
from edge_atp_ros.questions import Question


class Worker:
    """Serves questions by priority, then in order of arrival.

    Args:
        serve: answers one question; gets a function that turns True when the worker stops.
        cancel: answers a question that will not be served.
        on_error: told what either of the two raised; the worker goes on.
        capacity: questions that may wait.
    """

    def __init__(
        self,
        serve: Callable[[Question, Callable[[], bool]], None],
        cancel: Callable[[Question], None],
        on_error: Callable[[Question, Exception], None],
        capacity: int,
    ) -> None:
        self._serve = serve
        self._cancel = cancel
        self._on_error = on_error
        self._capacity = capacity
        self._waiting: list[tuple[int, int, Question]] = []
        self._held_ids: set[str] = set()
        self._arrivals = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._running: Question | None = None
        self._alive_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def submit(self, question: Question) -> None:
        """Queue a question.

        Raises:
            RejectedError: the queue is full, or the worker has stopped.
            InvalidQueryError: a question of this id is still unanswered.
        """
        with self._changed:
            if self._stopping:
                raise RejectedError("the node is not active; activate it and ask again")
            if question.query_id in self._held_ids:
                raise InvalidQueryError(
                    f"query_id {question.query_id!r} is in use by a question that is still"
                    " unanswered; give each question its own, or none"
                )
            if len(self._waiting) >= self._capacity:
                raise RejectedError(
                    f"the queue is full ({self._capacity} questions, parameter queue_size); ask"
                    " later or less often"
                )
            self._arrivals += 1
            heapq.heappush(self._waiting, (-question.priority, self._arrivals, question))
            self._held_ids.add(question.query_id)
            self._changed.notify()

    def __len__(self) -> int:
        """Questions waiting."""
        with self._changed:
            return len(self._waiting)

    def withdraw(self, question: Question) -> bool:
        """Take a question back out of the queue; False if it is no longer there."""
        with self._changed:
            for entry in self._waiting:
                if entry[2] is question:
                    self._waiting.remove(entry)
                    heapq.heapify(self._waiting)
                    self._held_ids.discard(question.query_id)
                    return True
            return False

    def silent_s(self) -> float:
        """Seconds since the question being served last asked whether to stop; 0 when idle."""
        with self._changed:
            return 0.0 if self._running is None else time.monotonic() - self._alive_s

    def abandon(self) -> list[Question]:
        """Give up a thread that does not return: accept nothing more, hand out what it held.

        Returns:
            The question being served, then those that wait. Empty, and nothing happens, if none
            is being served: the thread has returned after all.
        """
        with self._changed:
            if self._running is None:
                return []
            self._stopping = True
            held = [
                self._running,
                *(entry[2] for entry in sorted(self._waiting, key=lambda entry: entry[:2])),
            ]
            self._waiting.clear()
            return held

    def stop(self) -> None:
        """End the running answer at its next token, cancel those that wait, join the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (question := self._next()) is not None:
            try:
                if self._stopping:
                    self._cancel(question)
                else:
                    self._serve(question, self._asked_to_stop)
            except Exception as error:  # one bad picture must not end all answers
                self._on_error(question, error)
            with self._changed:
                self._held_ids.discard(question.query_id)
                self._running = None

    def _asked_to_stop(self) -> bool:
        self._alive_s = time.monotonic()
        return self._stopping

    def _next(self) -> Question | None:
        with self._changed:
            while not self._waiting and not self._stopping:
                self._changed.wait()
            self._running = heapq.heappop(self._waiting)[2] if self._waiting else None
            self._alive_s = time.monotonic()
            return self._running
