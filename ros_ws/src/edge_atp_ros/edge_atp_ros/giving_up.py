"""The end of a process whose inference thread does not return: each question still gets its one
final answer, diagnostics say why, and launch starts the node again.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from collections.abc import Callable, Iterable

from rclpy.logging import get_logger

from edge_atp_ros.answering import Answerer
from edge_atp_ros.error_codes import CanceledError, StuckError
from edge_atp_ros.health import Health
from edge_atp_ros.worker import Worker

# sysexits.h: EX_SOFTWARE, "internal software error".
EXIT_STUCK = 70
# For the executor to send the results of action goals.
_LAST_WORDS_S = 0.5


def give_up(
    reason: str,
    worker: Worker,
    answerer: Answerer,
    health: Health,
    last_words: Iterable[Callable[[], None]],
) -> None:
    """Answer what the stuck worker holds and end the process with ``EXIT_STUCK``.

    Returns only if the worker has come back meanwhile.

    Args:
        reason: why, for people.
        last_words: called in turn before the end, once every question is answered.
    """
    held = worker.abandon()
    if not held:
        return
    try:
        get_logger("watchdog").fatal(reason)
        faulthandler.dump_traceback(sys.__stderr__)
        health.fail(reason)
        stuck, *waiting = held
        answerer.refuse(stuck, StuckError(reason))
        for question in waiting:
            answerer.refuse(question, CanceledError(f"not begun: {reason}; ask again"))
        for speak in last_words:
            speak()
        time.sleep(_LAST_WORDS_S)
    finally:
        # Nothing gentler ends a process with a thread inside a native call.
        os._exit(EXIT_STUCK)
