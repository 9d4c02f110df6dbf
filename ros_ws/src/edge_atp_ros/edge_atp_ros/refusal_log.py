"""Lines of log about questions that were refused or failed: one each, unless they come in floods.

A flood (more questions than fit, or an error with every frame) gets its first line at once and then
one a second, of the newest refusal, which says how many more it stands for; the last one when the
second is over, or when the node stops. rclpy's own throttle never says how many it left out, and
looks up its caller's source file before it decides, at 1 ms a line: more than all the rest of
refusing a question.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable

from edge_atp_msgs.msg import Answer
from rclpy.impl.rcutils_logger import RcutilsLogger

from edge_atp.errors import EdgeAtpError
from edge_atp_ros.log_line import log_line
from edge_atp_ros.questions import Question
from edge_atp_ros.refusals import RejectedError

_FLOOD_PERIOD_S = 1.0


def call_later(seconds: float, call: Callable[[], None]) -> Callable[[], None]:
    """Call something after a while, in a thread of its own; returns what calls that off."""
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()
    return timer.cancel


class RefusalLog:
    """Writes the lines; may be used from several threads.

    Args:
        later: see ``call_later``.
    """

    def __init__(
        self,
        logger: RcutilsLogger,
        later: Callable[[float, Callable[[], None]], Callable[[], None]] = call_later,
    ) -> None:
        self._logger = logger
        self._later = later
        self._lock = threading.Lock()
        # Not None for a second after each line of a flood.
        self._call_off: Callable[[], None] | None = None
        self._newest: Answer | None = None
        self._num_held_back = 0

    def write(self, question: Question, error: BaseException, message: Answer) -> None:
        """Log the answer that says why a question was refused.

        Args:
            error: the reason; what is not an ``EdgeAtpError`` is logged with its traceback.
        """
        known = isinstance(error, EdgeAtpError)
        if isinstance(error, RejectedError) or (known and question.standing):
            self._write_one_of_many(message)
        elif known:
            self._logger.warning(log_line(message))
        else:
            trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            self._logger.error(f"{log_line(message)}\n{trace}")

    def flush(self) -> None:
        """Write what is held back: the node stops, and nothing may follow."""
        with self._lock:
            if self._call_off is not None:
                self._call_off()
                self._call_off = None
            line = self._take_line()
        self._write(line)

    def _write_one_of_many(self, message: Answer) -> None:
        with self._lock:
            if self._call_off is not None:
                self._newest = message
                self._num_held_back += 1
                return
            self._begin_period()
        self._write(log_line(message))

    def _begin_period(self) -> None:
        try:
            self._call_off = self._later(_FLOOD_PERIOD_S, self._end_period)
        except RuntimeError:  # no thread to be had: lines are not held back, and no answer waits
            self._call_off = None

    def _end_period(self) -> None:
        with self._lock:
            self._call_off = None
            line = self._take_line()
            if line:
                self._begin_period()
        self._write(line)

    def _take_line(self) -> str:
        """The newest refusal that is held back, and how many more; "" if there is none."""
        message, others = self._newest, self._num_held_back - 1
        self._newest, self._num_held_back = None, 0
        if message is None:
            return ""
        return log_line(message) + (f" held_back={others}" if others else "")

    def _write(self, line: str) -> None:
        if line:
            self._logger.warning(line)
