"""/diagnostics once a second: the node, each camera, latency by stage, and the host.

Level ERROR: the node cannot go on. WARN: a camera is silent, the engine failed lately, or a
second node answers to the same name. Everything else is a number for people and dashboards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from edge_atp_msgs.msg import Answer
from rclpy.node import Node

from edge_atp_ros.cameras import CameraCounts
from edge_atp_ros.health import PERCENTILES, HealthReport
from edge_atp_ros.host import resident_bytes, temperatures_c
from edge_atp_ros.log_line import ERROR_NAMES, STATUS_NAMES
from edge_atp_ros.turns import Skips

_PERIOD_S = 1.0
_SILENT_S = 2.0


@dataclass(frozen=True)
class Report:
    """A snapshot of the node.

    state: label of the lifecycle state.
    backend, model_id, method: what answers, "" if nothing is loaded.
    waiting, queue_size: questions in the queue, and how many fit.
    health: outcomes and latencies.
    cameras: counts by camera.
    standing: what became of the frames of each standing question.
    """

    state: str
    backend: str
    waiting: int
    health: HealthReport
    cameras: Mapping[str, CameraCounts]
    model_id: str = ""
    method: str = ""
    queue_size: int = 0
    standing: Mapping[str, Skips] = field(default_factory=dict)


@dataclass
class Rates:
    """Frames per second of each camera between two reports."""

    _last: dict[str, tuple[float, int]] = field(default_factory=dict)

    def update(self, cameras: Mapping[str, CameraCounts], now_s: float) -> dict[str, float]:
        """Rates since the previous call; 0 on the first."""
        rates = {}
        for name, counts in cameras.items():
            then_s, received = self._last.get(name, (now_s, counts.received))
            elapsed_s = now_s - then_s
            rates[name] = (counts.received - received) / elapsed_s if elapsed_s > 0 else 0.0
            self._last[name] = (now_s, counts.received)
        return rates


class Diagnostics:
    """Publishes a report of the node once a second."""

    def __init__(self, node: Node, report: Callable[[], Report]) -> None:
        self._node = node
        self._report = report
        self._rates = Rates()
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._timer = node.create_timer(_PERIOD_S, self.publish)

    def publish(self) -> None:
        """Publish now, besides the timer."""
        report, now_s = self._report(), time.monotonic()
        now = self._node.get_clock().now()
        rates = self._rates.update(report.cameras, now_s)
        name = self._node.get_fully_qualified_name()
        message = DiagnosticArray(
            status=[
                node_status(name, report, self._namesakes()),
                latency_status(name, report.health),
                host_status(name, resident_bytes(), temperatures_c()),
                standing_status(name, report.standing),
                *camera_statuses(name, report, rates, now_s, now.nanoseconds),
            ]
        )
        message.header.stamp = now.to_msg()
        self._publisher.publish(message)

    def _namesakes(self) -> int:
        """Other nodes of the same name: each would answer every question, too."""
        own = (self._node.get_name(), self._node.get_namespace())
        return self._node.get_node_names_and_namespaces().count(own) - 1


def node_status(name: str, report: Report, namesakes: int) -> DiagnosticStatus:
    """State, queue and outcomes of the node.

    Args:
        name: fully qualified name of the node.
        report: the snapshot.
        namesakes: other nodes of the same name.
    """
    health = report.health
    level, text = DiagnosticStatus.OK, report.state
    if namesakes > 0:
        level = DiagnosticStatus.WARN
        text = f"{namesakes} other node of this name answers, too: rename or stop one"
    if health.engine_failures:
        level = DiagnosticStatus.WARN
        text = f"the inference engine failed {health.engine_failures} times in the last 10 s"
    if health.fault:
        level, text = DiagnosticStatus.ERROR, health.fault
    values: dict[str, object] = {
        "state": report.state,
        "backend": report.backend,
        "model": report.model_id,
        "method": report.method,
        "questions_waiting": report.waiting,
        "queue_size": report.queue_size,
        "questions_lost": health.lost,
        "answers_per_s": f"{health.answers_per_s:.2f}",
    }
    for code, text_of in STATUS_NAMES.items():
        if code == Answer.STATUS_PARTIAL:
            continue
        values[f"answers_{text_of}"] = health.by_status.get(code, 0)
    for code, text_of in ERROR_NAMES.items():
        if code != Answer.ERROR_NONE and (count := health.by_error.get(code, 0)):
            values[f"errors_{text_of}"] = count
    return DiagnosticStatus(level=level, name=name, message=text, values=_values(values))


def latency_status(name: str, health: HealthReport) -> DiagnosticStatus:
    """Percentiles of each stage in milliseconds; see LatencyBreakdown.msg for the stages."""
    values: dict[str, object] = {"answers": health.window}
    for stage, seconds in health.latency_s.items():
        for percent, value in zip(PERCENTILES, seconds, strict=True):
            values[f"{stage}_p{percent}_ms"] = f"{value * 1e3:.2f}"
    return DiagnosticStatus(
        level=DiagnosticStatus.OK,
        name=f"{name}: latency",
        message=f"of the newest {health.window} complete answers",
        values=_values(values),
    )


def host_status(
    name: str, resident: int | None, temperatures: Mapping[str, float]
) -> DiagnosticStatus:
    """Memory of the process and temperatures of the machine, as far as readable."""
    values = {} if resident is None else {"resident_mb": f"{resident / 1e6:.1f}"}
    values |= {f"temperature_{zone}_c": f"{celsius:.1f}" for zone, celsius in temperatures.items()}
    return DiagnosticStatus(
        level=DiagnosticStatus.OK, name=f"{name}: host", message="", values=_values(values)
    )


def standing_status(name: str, standing: Mapping[str, Skips]) -> DiagnosticStatus:
    """Which standing questions were passed over how often, and why (see ``turns.Skips``)."""
    values: dict[str, object] = {"standing_questions": len(standing)}
    for query_id, skips in sorted(standing.items()):
        values[query_id] = (
            f"frames {skips.offered}, turns {skips.turns}; skipped: {skips.own} still answering,"
            f" {skips.others} others first, {skips.rate} rate"
        )
    return DiagnosticStatus(
        level=DiagnosticStatus.OK, name=f"{name}: standing", message="", values=_values(values)
    )


def camera_statuses(
    name: str, report: Report, rates: Mapping[str, float], now_s: float, ros_now_ns: int
) -> list[DiagnosticStatus]:
    """One status per camera.

    Args:
        name: fully qualified name of the node.
        report: the snapshot.
        rates: images per second of each camera.
        now_s: ``time.monotonic()``.
        ros_now_ns: the ROS clock, by which images are stamped.
    """
    active = report.state == "active"
    return [
        _camera(f"{name}: camera {camera}", counts, active, rates[camera], now_s, ros_now_ns)
        for camera, counts in report.cameras.items()
    ]


def _camera(
    name: str, counts: CameraCounts, active: bool, rate_hz: float, now_s: float, ros_now_ns: int
) -> DiagnosticStatus:
    since_s = None if counts.last_s is None else now_s - counts.last_s
    age_s = None if counts.stamp_ns is None else (ros_now_ns - counts.stamp_ns) / 1e9
    silent = active and (since_s is None or since_s > _SILENT_S)
    return DiagnosticStatus(
        level=DiagnosticStatus.WARN if silent else DiagnosticStatus.OK,
        name=name,
        message="no images" if silent else "",
        values=_values(
            {
                "frames_received": counts.received,
                "frames_dropped": counts.dropped,
                "frames_late": counts.late,
                "rate_hz": f"{rate_hz:.2f}",
                "seconds_since_last": "never" if since_s is None else f"{since_s:.3f}",
                "frame_age_s": "none" if age_s is None else f"{age_s:.3f}",
            }
        ),
    )


def _values(entries: Mapping[str, object]) -> list[KeyValue]:
    return [KeyValue(key=key, value=str(value)) for key, value in entries.items()]
