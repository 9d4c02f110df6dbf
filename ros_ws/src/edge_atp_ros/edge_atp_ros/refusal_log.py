"""Lines of log about questions that were refused or failed: one each, unless they come in floods.

A flood (more questions than fit, or an error with every frame) gets a line a second, which says how
many it stands for. rclpy's own throttle looks up its caller's source file before it decides, at
1 ms a line: more than all the rest of refusing a question.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable

from edge_atp_msgs.msg import Answer
from rclpy.impl.rcutils_logger import RcutilsLogger

from edge_atp.errors import EdgeAtpError
from edge_atp_ros.log_line import log_line
from edge_atp_ros.questions import Question
from edge_atp_ros.refusals import RejectedError

_FLOOD_PERIOD_S = 1.0


class RefusalLog:
    """Writes the lines; may be used from several threads.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, logger: RcutilsLogger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._lock = threading.Lock()
        self._next_s = -float("inf")
        self._held_back = 0

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

    def _write_one_of_many(self, message: Answer) -> None:
        with self._lock:
            now_s = self._clock()
            if now_s < self._next_s:
                self._held_back += 1
                return
            held_back, self._held_back = self._held_back, 0
            self._next_s = now_s + _FLOOD_PERIOD_S
        self._logger.warning(log_line(message) + (f" held_back={held_back}" if held_back else ""))
