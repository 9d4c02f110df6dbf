"""One thread that answers questions one after the other, in the order a scheduler gives.

Every question handed in is handed out exactly once: to ``serve``, or, once stopping, to
``cancel``; a standing one once for each of its turns. Knows nothing of ROS.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from edge_atp_ros.frames import FrameSet
from edge_atp_ros.questions import Question
from edge_atp_ros.refusals import RejectedError
from edge_atp_ros.scheduling import Scheduler
from edge_atp_ros.turns import Skips, Turn

# How long a thread that waits for nothing in particular sleeps, seconds.
_LONGEST_SLEEP_S = 60.0


class Worker:
    """Serves questions between ``start`` and ``stop``; keeps standing ones beyond.

    Args:
        serve: answers one question; gets a function that turns True when the worker stops.
        cancel: answers a question that will not be served.
        on_error: told what either of the two raised; the worker goes on.
        scheduler: says whose turn it is; used by this worker alone.
        newest: the newest frames of some cameras, None if there are none yet.
    """

    def __init__(
        self,
        serve: Callable[[Question, Callable[[], bool]], None],
        cancel: Callable[[Question], None],
        on_error: Callable[[Question, Exception], None],
        scheduler: Scheduler[Question, FrameSet],
        newest: Callable[[tuple[str, ...]], FrameSet | None],
    ) -> None:
        self._serve = serve
        self._cancel = cancel
        self._on_error = on_error
        self._scheduler = scheduler
        self._newest = newest
        self._offered: dict[tuple[str, ...], FrameSet] = {}
        self._changed = threading.Condition()
        self._stopping = True
        self._running: Question | None = None
        self._alive_s = time.monotonic()
        self._thread: threading.Thread | None = None

    # Life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve."""
        with self._changed:
            self._stopping = False
            self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the running answer at its next token, cancel those that wait, join the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    @property
    def serving(self) -> bool:
        """Whether questions are taken."""
        return not self._stopping

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
            return [self._running, *self._scheduler.take_all_back()]

    # Questions asked once --------------------------------------------------------------------

    def submit(self, question: Question) -> None:
        """Queue a question.

        Raises:
            RejectedError: the queue is full, or the worker has stopped.
            IdInUseError: a question of this id is held.
        """
        with self._changed:
            if self._stopping:
                raise RejectedError("the node is not active; activate it and ask again")
            self._scheduler.submit(question)
            self._changed.notify()

    def withdraw(self, question: Question) -> bool:
        """Take a question back out of the queue; False if it is no longer there."""
        with self._changed:
            return self._scheduler.take_back(question)

    def holds(self, query_id: str) -> bool:
        """Whether a question of this id waits, is being answered, or stands."""
        with self._changed:
            return self._scheduler.holds(query_id)

    def __len__(self) -> int:
        """Questions waiting."""
        with self._changed:
            return len(self._scheduler)

    # Standing questions ----------------------------------------------------------------------

    def hold(self, question: Question) -> bool:
        """Keep a standing question, and ask it about the newest frame at once.

        Returns:
            Whether it replaced one of the same id, whose answer under way is cancelled.
        Raises:
            IdInUseError, RejectedError: see ``Scheduler.hold``.
        """
        with self._changed:
            frames = None if self._stopping else self._newest(question.cameras)
            replaced = self._scheduler.hold(question, question.sequence, frames) is not None
            if replaced:
                self._cancel_running(question.query_id)
            self._changed.notify()
            return replaced

    def release(self, query_id: str) -> int | None:
        """Remove a standing question and cancel its answer under way.

        Returns:
            The sequence number that was next; None if there is no such question.
        """
        with self._changed:
            following = self._scheduler.release(query_id)
            if following is not None:
                self._cancel_running(query_id)
            return following

    def skips(self) -> dict[str, Skips]:
        """What became of the frames of each standing question."""
        with self._changed:
            return self._scheduler.skips()

    def frame_arrived(self, camera: str) -> None:
        """Tell the questions about a camera that it has a new newest frame."""
        with self._changed:
            views = {question.cameras for question in self._scheduler.standing.values()}
            for cameras in views:
                if camera in cameras:
                    self._offer(cameras)
            if views or len(self._scheduler):
                self._changed.notify()

    def forget_frames(self) -> None:
        """The frames so far are void: the clock has been set back."""
        with self._changed:
            self._scheduler.forget_frames()
            self._offered.clear()

    def _offer(self, cameras: tuple[str, ...]) -> None:
        frames = self._newest(cameras)
        # Of several cameras, the first one's new image is what asks the question anew.
        before = self._offered.get(cameras)
        if frames is not None and (before is None or frames[0] != before[0]):
            self._offered[cameras] = frames
            self._scheduler.offer(cameras, frames)

    def _cancel_running(self, query_id: str) -> None:
        running = self._running
        if running is not None and running.standing and running.query_id == query_id:
            running.withdraw()

    # The thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        while (question := self._next()) is not None:
            try:
                self._serve(question, self._asked_to_stop)
            except Exception as error:  # one bad picture must not end all answers
                self._on_error(question, error)
            with self._changed:
                self._running = None
                self._scheduler.finish()
        with self._changed:
            waiting = self._scheduler.take_all_back()
            self._offered.clear()
        for question in waiting:
            try:
                self._cancel(question)
            except Exception as error:
                self._on_error(question, error)

    def _asked_to_stop(self) -> bool:
        self._alive_s = time.monotonic()
        return self._stopping

    def _next(self) -> Question | None:
        with self._changed:
            while not self._stopping:
                turn = self._scheduler.next()
                if turn is not None:
                    self._running = firing(turn)
                    self._alive_s = time.monotonic()
                    return self._running
                self._changed.wait(min(self._scheduler.sleep_s(), _LONGEST_SLEEP_S))
            return None


def firing(turn: Turn[Question, FrameSet]) -> Question:
    """The question to serve: with its frames, and for a standing one with a life of its own."""
    question = replace(turn.question, frames=turn.frames, late=turn.late)
    if not turn.standing:
        return question
    return question.fresh(turn.waiting_since_s, turn.ordinal, turn.skipped)
