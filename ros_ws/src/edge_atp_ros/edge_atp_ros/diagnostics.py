"""/diagnostics once a second: the node's state, its counts, and each camera's.

Reports; judges nothing but whether a camera is silent. Latency percentiles are not here yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from edge_atp_msgs.msg import Answer
from rclpy.node import Node

from edge_atp_ros.cameras import CameraCounts

_PERIOD_S = 1.0
_SILENT_S = 2.0
_STATUS_NAMES = {
    Answer.STATUS_FINAL: "final",
    Answer.STATUS_TRUNCATED: "truncated",
    Answer.STATUS_CANCELED: "canceled",
    Answer.STATUS_EXPIRED: "expired",
    Answer.STATUS_ERROR: "error",
}


@dataclass(frozen=True)
class Report:
    """A snapshot of the node.

    state: label of the lifecycle state.
    backend: what runs the model, "" if none is loaded.
    waiting: questions in the queue.
    answers: final answers so far, by ``Answer.status``.
    cameras: counts by camera.
    """

    state: str
    backend: str
    waiting: int
    answers: Mapping[int, int]
    cameras: Mapping[str, CameraCounts]


class Diagnostics:
    """Publishes a report of the node once a second."""

    def __init__(self, node: Node, report: Callable[[], Report]) -> None:
        self._node = node
        self._report = report
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._timer = node.create_timer(_PERIOD_S, self._publish)

    def _publish(self) -> None:
        name = self._node.get_fully_qualified_name()
        message = DiagnosticArray(status=to_status(name, self._report(), time.monotonic()))
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)


def to_status(name: str, report: Report, now_s: float) -> list[DiagnosticStatus]:
    """One status for the node and one per camera.

    Args:
        name: fully qualified name of the node.
        report: what to say.
        now_s: ``time.monotonic()``.
    """
    counts = {text: report.answers.get(code, 0) for code, text in _STATUS_NAMES.items()}
    node = DiagnosticStatus(
        level=DiagnosticStatus.OK,
        name=name,
        message=report.state,
        values=_values(
            {"backend": report.backend, "questions_waiting": report.waiting}
            | {f"answers_{text}": count for text, count in counts.items()}
        ),
    )
    active = report.state == "active"
    return [node, *(_camera(name, c, n, active, now_s) for c, n in report.cameras.items())]


def _camera(
    node: str, camera: str, counts: CameraCounts, active: bool, now_s: float
) -> DiagnosticStatus:
    age_s = None if counts.last_s is None else now_s - counts.last_s
    silent = active and (age_s is None or age_s > _SILENT_S)
    return DiagnosticStatus(
        level=DiagnosticStatus.WARN if silent else DiagnosticStatus.OK,
        name=f"{node}: camera {camera}",
        message="no images" if silent else "",
        values=_values(
            {
                "frames_received": counts.received,
                "frames_dropped": counts.dropped,
                "seconds_since_last": "never" if age_s is None else f"{age_s:.3f}",
            }
        ),
    )


def _values(entries: Mapping[str, object]) -> list[KeyValue]:
    return [KeyValue(key=key, value=str(value)) for key, value in entries.items()]
