"""How the node is doing: answers by outcome, latency percentiles by stage, faults.

Everything is bounded: percentiles cover the newest answers only. Knows nothing of nodes, topics
or clocks other than the monotonic one.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from edge_atp_msgs.msg import Answer, LatencyBreakdown

STAGES = tuple(LatencyBreakdown.get_fields_and_field_types())
PERCENTILES = (50, 95, 99)
# A percentile of 99 means something from 100 answers on; 512 are 20 s at 25 Hz.
_WINDOW = 512
_RATE_WINDOW_S = 10.0
_COMPLETE = frozenset({Answer.STATUS_FINAL, Answer.STATUS_TRUNCATED})
_ENGINE_ERRORS = frozenset({Answer.ERROR_OUT_OF_MEMORY, Answer.ERROR_BACKEND, Answer.ERROR_TIMEOUT})


@dataclass(frozen=True)
class HealthReport:
    """A snapshot.

    by_status, by_error: final answers since the start, by ``Answer.status`` and ``error_code``.
    answers_per_s: over the last 10 s.
    latency_s: (p50, p95, p99) of each stage over the newest complete answers; empty before the
        first.
    window: complete answers the percentiles cover.
    engine_failures: answers of the last 10 s that report a failure of the inference engine.
    lost: questions that the middleware reports lost before they arrived.
    fault: why the node cannot go on, "" if it can.
    """

    by_status: Mapping[int, int]
    by_error: Mapping[int, int]
    answers_per_s: float
    latency_s: Mapping[str, tuple[float, ...]]
    window: int
    engine_failures: int
    lost: int
    fault: str


class Health:
    """Counts what the node answers; may be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_status: Counter[int] = Counter()
        self._by_error: Counter[int] = Counter()
        self._latencies: deque[tuple[float, ...]] = deque(maxlen=_WINDOW)
        self._answered_s: deque[float] = deque()
        self._failed_s: deque[float] = deque(maxlen=_WINDOW)
        self._lost = 0
        self._fault = ""

    def answered(self, message: Answer) -> None:
        """Count a final answer."""
        now_s = time.monotonic()
        failed = message.status == Answer.STATUS_ERROR and message.error_code in _ENGINE_ERRORS
        with self._lock:
            self._by_status[message.status] += 1
            self._by_error[message.error_code] += 1
            self._answered_s.append(now_s)
            self._forget(now_s)
            if failed:
                self._failed_s.append(now_s)
            if message.status in _COMPLETE:
                self._latencies.append(tuple(getattr(message.latency, s) for s in STAGES))

    def lost(self, count: int) -> None:
        """Count questions that never arrived."""
        with self._lock:
            self._lost += count

    def fail(self, reason: str) -> None:
        """The node cannot go on; the first reason stays."""
        with self._lock:
            self._fault = self._fault or reason

    def report(self) -> HealthReport:
        """The state now."""
        now_s = time.monotonic()
        with self._lock:
            self._forget(now_s)
            latencies = list(self._latencies)
            return HealthReport(
                by_status=dict(self._by_status),
                by_error=dict(self._by_error),
                answers_per_s=len(self._answered_s) / _RATE_WINDOW_S,
                latency_s=_percentiles(latencies),
                window=len(latencies),
                engine_failures=sum(now_s - at < _RATE_WINDOW_S for at in self._failed_s),
                lost=self._lost,
                fault=self._fault,
            )

    def _forget(self, now_s: float) -> None:
        while self._answered_s and now_s - self._answered_s[0] > _RATE_WINDOW_S:
            self._answered_s.popleft()


def _percentiles(latencies: list[tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    if not latencies:
        return {}
    table = np.percentile(np.array(latencies), PERCENTILES, axis=0)  # (3, stages)
    return {
        stage: tuple(float(v) for v in column)
        for stage, column in zip(STAGES, table.T, strict=True)
    }
