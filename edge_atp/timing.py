"""Back-to-back stage timing: each lap starts where the last one ended, so stages add up."""

from __future__ import annotations

import time
from collections.abc import Iterable

from edge_atp.types import StageTimes


class StageClock:
    """Collects the seconds of each stage of one answer.

    Args:
        accepted_s: ``time.perf_counter()`` when the question was accepted; time since then is
            ``queue_wait``. None: now.
        frame_age_s: age of the frame when work on it begins, by the clock that stamped it.
    """

    def __init__(self, accepted_s: float | None = None, frame_age_s: float = 0.0) -> None:
        self._last_s = time.perf_counter()
        self._accepted_s = self._last_s if accepted_s is None else accepted_s
        self._frame_age_s = frame_age_s
        self._first_token_s = 0.0
        self._seconds: dict[str, float] = {"queue_wait": self._last_s - self._accepted_s}

    def lap(self, stage: str) -> float:
        """Book the time since the previous lap under ``stage`` (laps of one stage add up).

        Returns:
            Seconds of this lap.
        """
        now_s = time.perf_counter()
        seconds = now_s - self._last_s
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
        self._last_s = now_s
        return seconds

    def first_token(self) -> None:
        """Mark the first generated token (only the first call counts)."""
        if self._first_token_s == 0.0:
            self._first_token_s = time.perf_counter() - self._accepted_s

    def times(self) -> StageTimes:
        """The stage times so far; ``total`` ends at the last lap."""
        return StageTimes(
            frame_age=self._frame_age_s,
            first_token=self._first_token_s,
            total=self._last_s - self._accepted_s,
            **self._seconds,
        )


def encoding_times(frames: Iterable[StageTimes]) -> StageTimes:
    """Seconds spent on frames that were encoded ahead of their question, all frames together.

    Args:
        frames: of each frame, as ``Pipeline.encode`` tells its clock.
    Returns:
        Preprocessing, encoding and the choosing of a cut inside the encoder; ``total`` is their
        sum, without the waiting for graphs that had to be opened.
    """
    spent = list(frames)
    preprocess = sum(times.preprocess for times in spent)
    vision_encode = sum(times.vision_encode for times in spent)
    prune = sum(times.prune for times in spent)
    return StageTimes(
        preprocess=preprocess,
        vision_encode=vision_encode,
        prune=prune,
        total=preprocess + vision_encode + prune,
    )
