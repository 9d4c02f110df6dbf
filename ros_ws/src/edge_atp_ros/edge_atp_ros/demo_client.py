"""Asks the demo's questions at their moments of the recording and collects the answers.

An ordinary planner with an ordinary ``VlmClient``.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import rclpy
import yaml
from edge_atp_msgs.msg import Answer, PatchMaskArray, PruneConfig
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage

from edge_atp_ros.client import PendingReply, VlmClient
from edge_atp_ros.convert import to_ns

VLM, CAMERA = "vlm_node", "camera/image_raw/compressed"
DENSE, PRUNED = "dense", "pruned"
_KEPT_FRAMES = 400
_STEP_S = 0.02
_PATIENCE_S = 30.0
_FRAME_SLACK_S = 0.4  # two frames of the recording: the newest one is a little old


@dataclass(frozen=True)
class Check:
    """A question to ask at second ``at``, whose answer is ``expect`` until second ``until``."""

    at: float
    until: float
    ask: str
    expect: str


@dataclass(frozen=True)
class Outcome:
    """One question asked one way, and what came of it."""

    check: Check
    mode: str
    answer: Answer | None
    masks: PatchMaskArray | None
    frame: CompressedImage | None
    second: float

    @property
    def title(self) -> str:
        """Moment, question and mode, for messages."""
        return f"{self.check.at:.1f} s, {self.check.ask} ({self.mode})"

    @property
    def fault(self) -> str:
        """Why the outcome is not what it should be; "" if it is."""
        if self.answer is None:
            return "no answer"
        if self.answer.status != Answer.STATUS_FINAL:
            reason = self.answer.error_msg or f"not complete (status {self.answer.status})"
            return f"{reason}: {self.answer.text!r}" if self.answer.text else reason
        if not self.check.at - _FRAME_SLACK_S <= self.second <= self.check.until:
            return f"is about second {self.second:.1f} of the recording"
        if self.answer.text.strip().lower() != self.check.expect:
            return f"{self.answer.text!r} instead of {self.check.expect!r}"
        if self.masks is None or self.frame is None:
            return "its mask or its frame did not arrive"
        return ""


def load_checks(path: Path) -> list[Check]:
    """Read questions.yaml of a bag."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [Check(**entry) for entry in entries]


@contextlib.contextmanager
def open_client() -> Iterator[DemoClient]:
    """Start ROS for the demo's own node, and end it."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    client = DemoClient()
    try:
        yield client
    finally:
        client.destroy_node()
        rclpy.shutdown()


class DemoClient(Node):
    """Follows the recording's clock and asks each question dense and pruned."""

    def __init__(self) -> None:
        super().__init__("demo", parameter_overrides=[Parameter("use_sim_time", value=True)])
        self._frames: OrderedDict[int, CompressedImage] = OrderedDict()
        self._asked: dict[tuple[Check, str], PendingReply] = {}
        self._start_ns: int | None = None
        # Without a guard: a wrong or failed answer is an outcome to show, not to raise.
        self._vlm = VlmClient(self, VLM, guard=None, timeout_s=_PATIENCE_S)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)

    def ready(self) -> bool:
        """Whether the VLM node listens; spins for a moment."""
        self._executor.spin_once(timeout_sec=_STEP_S)
        return self._vlm.ready()

    def watch_camera(self) -> None:
        """Subscribe to the camera: its frames are what the pictures are drawn on."""
        self.create_subscription(CompressedImage, CAMERA, self._on_frame, qos_profile_sensor_data)

    def step(self, checks: Sequence[Check]) -> list[str]:
        """Handle what arrived, ask what is due; returns lines that say what was asked."""
        self._executor.spin_once(timeout_sec=_STEP_S)
        said = []
        for check in checks:
            if (check, DENSE) not in self._asked and self._second() >= check.at:
                said.append(f"  {self._second():5.1f} s  {check.ask}")
                self._ask(check, DENSE)
        # Pruned only when dense is through, since waiting for it would count as queue_wait, and
        # about a frame of its own, since the node encodes a frame once for all its questions.
        for check, mode in list(self._asked):
            if (check, PRUNED) not in self._asked and self._is_past(self._asked[check, mode]):
                self._ask(check, PRUNED)
        return said

    def finished(self, checks: Sequence[Check]) -> bool:
        """Whether every question has its answer and mask, or will have none."""
        return len(self._asked) == 2 * len(checks) and all(p.done() for p in self._asked.values())

    def outcomes(self, checks: Sequence[Check]) -> list[Outcome]:
        """One outcome per question and mode, in the order of the questions."""
        return [self._outcome(check, mode) for check in checks for mode in (DENSE, PRUNED)]

    def destroy_node(self) -> None:
        """Leave the executor first."""
        self._vlm.close()
        self._executor.shutdown()
        super().destroy_node()

    def _outcome(self, check: Check, mode: str) -> Outcome:
        pending = self._asked.get((check, mode))
        if pending is None or not pending.done() or pending.exception() is not None:
            return Outcome(check, mode, answer=None, masks=None, frame=None, second=0.0)
        reply = pending.result()
        return Outcome(
            check=check,
            mode=mode,
            answer=reply.answer,
            masks=reply.masks,
            frame=self._frames.get(reply.stamp_ns),
            second=(reply.stamp_ns - (self._start_ns or 0)) / 1e9,
        )

    def _is_past(self, pending: PendingReply) -> bool:
        """Whether a question is answered and the camera has gone on (or the answer failed)."""
        if not pending.done():
            return False
        if pending.exception() is not None:
            return True
        return next(reversed(self._frames), 0) > pending.result().stamp_ns

    def _second(self) -> float:
        """Second of the recording, negative before its first frame."""
        if self._start_ns is None:
            return -1.0
        return (self.get_clock().now().nanoseconds - self._start_ns) / 1e9

    def _ask(self, check: Check, mode: str) -> None:
        prune = PruneConfig(policy=PruneConfig.POLICY_OFF) if mode == DENSE else None
        self._asked[check, mode] = self._vlm.ask_async(check.ask, prune=prune)

    def _on_frame(self, frame: CompressedImage) -> None:
        stamp_ns = to_ns(frame.header.stamp)
        if self._start_ns is None:
            self._start_ns = stamp_ns
        self._frames[stamp_ns] = frame
        while len(self._frames) > _KEPT_FRAMES:
            self._frames.popitem(last=False)
