"""A scheduler of its own clock, with questions and frames that are nothing but names."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_atp_ros.scheduling import Scheduler
from edge_atp_ros.turns import Turn

CAMERA = ("camera",)
FAIR_EVERY = 3


@dataclass(frozen=True, eq=False)
class Ask:
    query_id: str
    cameras: tuple[str, ...] = CAMERA
    priority: int = 0
    deadline_s: float = 0.0
    max_rate_hz: float = 0.0


@dataclass
class Bench:
    """A scheduler, its clock, and what its judgements say."""

    capacity: int = 4
    max_standing: int = 3
    now_s: float = 100.0
    frames: dict[tuple[str, ...], object] = field(default_factory=lambda: {CAMERA: "live"})
    stale: set[object] = field(default_factory=set)
    service_s: float = 0.0

    def __post_init__(self) -> None:
        self.scheduler: Scheduler[Ask, object] = Scheduler(
            clock=lambda: self.now_s,
            frames_for=lambda question: self.frames.get(question.cameras),
            frame_wait_s=lambda: 1.0,
            hopeless=lambda question, left_s: left_s < self.service_s,
            is_stale=lambda question, frames: frames in self.stale,
            capacity=self.capacity,
            max_standing=self.max_standing,
            fair_every=FAIR_EVERY,
        )

    def offer(self, *frames: object) -> None:
        for frame in frames:
            self.scheduler.offer(CAMERA, frame)

    def turn(self) -> Turn[Ask, object]:
        turn = self.scheduler.next()
        assert turn is not None
        self.scheduler.finish()
        return turn

    def turns(self) -> list[tuple[str, object]]:
        served = []
        while (turn := self.scheduler.next()) is not None:
            served.append((turn.question.query_id, turn.frames))
            self.scheduler.finish()
        return served
