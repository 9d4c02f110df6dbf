"""Why work on an answer has to end early: the caller no longer wants it, or it is too late."""

from __future__ import annotations

import time
from collections.abc import Callable

from edge_atp.types import Status


class Interruption:
    """Asked between the stages of an answer and between its tokens; once true it stays true.

    Args:
        should_stop: the caller's own reason to stop.
        deadline_s: ``time.perf_counter()`` from which on the answer is of no use.

    Attributes:
        status: CANCELED or EXPIRED once asked and true, else None.
    """

    def __init__(
        self, should_stop: Callable[[], bool] | None = None, deadline_s: float | None = None
    ) -> None:
        self._should_stop = should_stop
        self._deadline_s = deadline_s
        self.status: Status | None = None

    def __call__(self) -> bool:
        """Whether to end now."""
        if self.status is None:
            if self._should_stop is not None and self._should_stop():
                self.status = Status.CANCELED
            elif self._deadline_s is not None and time.perf_counter() >= self._deadline_s:
                self.status = Status.EXPIRED
        return self.status is not None
