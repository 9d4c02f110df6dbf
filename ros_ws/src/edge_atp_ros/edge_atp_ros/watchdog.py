"""Notices that the inference thread is stuck, and ends a process that cannot be mended.

A native call that does not return cannot be ended from outside; what can be done is to answer
the questions it holds, say so, and leave, so that launch starts the process anew. Two stages:

    1. a thread of its own asks how long the inference thread has shown no sign of life, and
       reports it once as stuck (the executor may itself be waiting for that thread);
    2. if even this thread does not run, because the native call holds the interpreter, the C
       timer of ``faulthandler`` prints every thread's stack and ends the process.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
import traceback
from collections.abc import Callable

_LONGEST_POLL_S = 0.5


class Watchdog:
    """Watches one worker until ``stop``.

    Args:
        limit_s: longest silence, seconds; 0 watches nothing.
        silent_s: seconds since the last sign of life; 0 while there is nothing to do.
        on_stuck: called in the watchdog's thread with the seconds of silence, at each look until
            the silence ends.
        with_timer: arm stage 2, at three times the limit. One per process.
    """

    def __init__(
        self,
        limit_s: float,
        silent_s: Callable[[], float],
        on_stuck: Callable[[float], None],
        *,
        with_timer: bool = False,
    ) -> None:
        self._limit_s = limit_s
        self._silent_s = silent_s
        self._on_stuck = on_stuck
        self._with_timer = with_timer
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if limit_s > 0:
            self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        if self._with_timer:
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._stopped.wait(min(_LONGEST_POLL_S, self._limit_s / 4)):
            if self._with_timer:
                faulthandler.dump_traceback_later(3 * self._limit_s, exit=True, file=sys.__stderr__)
            silent_s = self._silent_s()
            if silent_s > self._limit_s:
                self._report(silent_s)

    def _report(self, silent_s: float) -> None:
        try:
            self._on_stuck(silent_s)
        except Exception:  # nobody is left to catch it
            traceback.print_exc(file=sys.__stderr__)
