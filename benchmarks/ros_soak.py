"""Is anything lost when far more is asked than can be answered? Real node, cameras and clients.

    scripts/with_ros python -m benchmarks.ros_soak [--accepted N | --questions N] [--json OUT]

Four cameras at 30 Hz (640x480 rgb8, from a process of their own) and questions at several times
the rate the node sustains: most on the topic, every 25th as an action goal, beside two standing
questions. Asking goes on until the given number of questions is accepted (10,000: about 10 minutes
at 16 answers a second) or asked. ListQueries is called ten times a second throughout, by a process
that does nothing else. Checked, exit code 1 otherwise:

    each question has exactly one final answer; what is not answered is REJECTED
    an answer is about the cameras its question named, with a header those cameras published
    each complete answer has its mask, of the same header
    standing questions' sequence numbers only rise

Printed: outcomes, the resident set's slope per 10,000 answers after a stated warm-up, and what
ListQueries took, beside what the same service of a bare node took meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from edge_atp_msgs.msg import Answer, Query
from edge_atp_msgs.srv import SetQuery
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from benchmarks.ros_bench import (
    VlmProcess,
    call,
    end_on_sigterm,
    end_process,
    make_image,
    picture,
    spinning,
    use_own_domain,
    vlm_process,
    wait_until,
)
from benchmarks.ros_listing import Lister, Listing
from benchmarks.ros_soak_clients import CAMERAS, COMPLETE, MARK, STANDING, TEXTS, Clients

# Questions accepted before memory is looked at, or this share of a shorter run.
_WARM_UP = 500
_WARM_UP_SHARE = 0.3
# DDS takes memory for its queues of images (parameter camera_depth) when the node falls behind, and
# keeps it. The node is stopped, and let run, for so long each time, until that takes no more; at
# times Fast DDS gives up what is queued for a process that stands still (launch/fastdds_*.xml).
_SUSPENDED_S, _RESUMED_S = 0.7, 0.5
_ENOUGH_STOPS, _FLAT_BYTES = 4, 1_000_000
_COURSE_POINTS = 12
_SPEED_SAMPLES = 8


@dataclass(frozen=True)
class Report:
    """What was seen; ``faults`` is empty if nothing was wrong.

    questions: asked. accepted: not REJECTED.
    sustained_hz: answers a second, one question at a time, cameras running.
    asked_hz: questions a second during the soak.
    stops: of the node before the soak, until its queues of images were full. warm_up: questions
        accepted after that, before the resident set was looked at.
    resident_mb: by questions accepted, from then to the end.
    slope_mb: growth of the resident set per 10,000 final answers, and per 10,000 accepted ones.
    """

    questions: int
    accepted: int
    sustained_hz: float
    asked_hz: float
    outcomes: dict[str, int]
    standing_answers: int
    stops: int
    warm_up: int
    resident_mb: dict[int, float]
    slope_mb: tuple[float, float]
    list_queries: Listing
    faults: tuple[str, ...]


class Memory:
    """Context manager: the node's resident set over its answers, sampled in a thread."""

    def __init__(self, process: VlmProcess, clients: Clients) -> None:
        self._process, self._clients = process, clients
        self._samples: list[tuple[int, int, int]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopped.set()
        self._thread.join()

    def course(self) -> tuple[int, dict[int, float], tuple[float, float]]:
        """``warm_up``, ``resident_mb`` and ``slope_mb`` of the report."""
        accepted = self._samples[-1][1]
        warm_up = min(_WARM_UP, int(_WARM_UP_SHARE * accepted))
        warm = [sample for sample in self._samples if sample[1] >= warm_up]
        shown = [warm[i] for i in np.linspace(0, len(warm) - 1, _COURSE_POINTS).astype(int)]
        course = {count: round(resident / 1e6, 2) for _finals, count, resident in shown}
        finals, accepted_then, resident = np.array(warm, dtype=np.float64).T
        slopes = [
            float(np.polyfit(over, resident, 1)[0] * 10_000 / 1e6)
            for over in (finals, accepted_then)
        ]
        return warm_up, course, (slopes[0], slopes[1])

    def _sample(self) -> None:
        while not self._stopped.wait(0.5):
            now = (self._clients.num_finals, self._clients.num_accepted)
            self._samples.append((*now, self._process.resident_bytes()))


def run(
    questions: float = math.inf,
    accepted: float = math.inf,
    overload: float = 4.0,
    camera_hz: float = 30.0,
    queue_size: int = 64,
    least_hz: float = 0.0,
    most_stops: int = 60,
) -> Report:
    """Soak a node with questions at ``overload`` times the sustained rate.

    Args:
        questions, accepted: end when this many have been asked, or accepted.
        least_hz: ask at this rate even if the machine is too busy to sustain a fraction of it.
        most_stops: of the node before the soak, see ``Report.stops``.
    """
    topics = ", ".join(f"/{name}/image_raw" for name in CAMERAS)
    parameters = (
        "autostart:=true",
        f"cameras:=[{', '.join(CAMERAS)}]",
        f"camera_topics:=[{topics}]",
        "sync_tolerance:=0.0",
        "frame_wait:=0.2",
        f"queue_size:={queue_size}",
    )
    with contextlib.ExitStack() as stack:
        lister = Lister(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        process = stack.enter_context(vlm_process(*parameters, program=lister.vlm_program()))
        node = stack.enter_context(spinning("soak"))
        process.wait_for("active: cameras")
        stack.enter_context(_cameras(camera_hz))
        clients = Clients(node)
        wait_until(clients.ready, "the node listens")
        sustained_hz = _sustained_hz(clients)
        _hold_standing(node)
        stops = _fill_queues(process, most_stops)
        rate_hz = max(overload * sustained_hz, least_hz)
        with lister, Memory(process, clients) as memory:
            wait_until(lister.begun, "ListQueries answers")
            asked, asked_hz = _ask(clients, rate_hz, questions, accepted)
            late = _await_last(clients)
            listing = lister.read()
        return _report(clients, memory, listing, asked, stops, (sustained_hz, asked_hz), late)


def _fill_queues(process: VlmProcess, most_stops: int) -> int:
    """Let DDS take the memory for its queues; returns how often the node was stopped for that."""
    most, flat = process.resident_bytes(), 0
    for number in range(1, most_stops + 1):
        process.suspend(_SUSPENDED_S)
        time.sleep(_RESUMED_S)
        resident = process.resident_bytes()
        flat = flat + 1 if resident < most + _FLAT_BYTES else 0
        most = max(most, resident)
        if flat == _ENOUGH_STOPS:
            return number
    return most_stops


@contextlib.contextmanager
def _cameras(rate_hz: float) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.ros_soak", "--be-cameras", str(rate_hz)]
    publisher = subprocess.Popen(command)
    try:
        yield
    finally:
        end_process(publisher)


def _hold_standing(node: Node) -> None:
    for query_id, cameras in STANDING.items():
        query = Query(
            query_id=query_id,
            text=TEXTS[0],
            cameras=list(cameras),
            mode=Query.MODE_STANDING,
            max_rate=2.0,
        )
        response = call(node, SetQuery, "set_query", SetQuery.Request(query=query))
        if not response.success:
            raise RuntimeError(response.error_msg)


def _ask(clients: Clients, rate_hz: float, questions: float, accepted: float) -> tuple[int, float]:
    """Ask until the limits; returns how many were asked, and how many a second."""
    begun_s, number = time.perf_counter(), 0
    while number < questions and clients.num_accepted < accepted:
        number += 1
        clients.ask(number)
        due_s = begun_s + number / rate_hz
        time.sleep(max(0.0, due_s - time.perf_counter()))
    return number, number / (time.perf_counter() - begun_s)


def _await_last(clients: Clients) -> list[str]:
    """Wait for the last answers; returns what is wrong if some do not come."""
    try:
        wait_until(lambda: not clients.unanswered(), "the last answers", 420.0)
        return []
    except RuntimeError:
        return [f"{query_id}: no answer" for query_id in clients.unanswered()]
    finally:
        time.sleep(1.0)  # for second answers that must not come


def _sustained_hz(clients: Clients) -> float:
    """One question at a time, once the cameras are there; ids apart from those of the soak."""
    times_s = []
    complete = 0
    for number in range(-1, -200, -1):
        begun_s = time.perf_counter()
        query_id = clients.ask(number)
        wait_until(lambda query_id=query_id: query_id in clients.finals, "a first answer")
        if clients.finals[query_id][0].status in COMPLETE:
            complete += 1
            times_s.append(time.perf_counter() - begun_s)
        if complete > 2 * len(CAMERAS) + _SPEED_SAMPLES:
            return 1.0 / float(np.median(times_s[-_SPEED_SAMPLES:]))
    raise RuntimeError("the cameras' images do not arrive")


def _report(
    clients: Clients,
    memory: Memory,
    listing: Listing,
    questions: int,
    stops: int,
    rates_hz: tuple[float, float],
    late: list[str],
) -> Report:
    outcomes: Counter[str] = Counter()
    for number in range(1, questions + 1):
        for answer in clients.finals[f"q{number}"]:
            complete = answer.status in COMPLETE
            outcomes["complete" if complete else f"error {answer.error_code}"] += 1
    warm_up, course, slope_mb = memory.course()
    return Report(
        questions=questions,
        accepted=sum(outcomes.values()) - outcomes[f"error {Answer.ERROR_REJECTED}"],
        sustained_hz=rates_hz[0],
        asked_hz=rates_hz[1],
        outcomes=dict(outcomes),
        standing_answers=sum(len(clients.finals[query_id]) for query_id in STANDING),
        stops=stops,
        warm_up=warm_up,
        resident_mb=course,
        slope_mb=slope_mb,
        list_queries=listing,
        faults=tuple(late + clients.faults()),
    )


def be_cameras(rate_hz: float) -> None:
    """Publish on every camera at a rate until terminated."""
    pixels = [picture(seed=seed) for seed in range(len(CAMERAS))]
    with spinning("soak_cameras") as node:
        publishers = [
            node.create_publisher(Image, f"/{name}/image_raw", qos_profile_sensor_data)
            for name in CAMERAS
        ]
        due_s = time.perf_counter()
        while True:
            for index, name in enumerate(CAMERAS):
                stamp_ns = time.time_ns() // 1000 * 1000 + MARK + index
                publishers[index].publish(make_image(pixels[index], name, stamp_ns))
            due_s += 1.0 / rate_hz
            time.sleep(max(0.0, due_s - time.perf_counter()))


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--accepted", type=float, default=math.inf)
    parser.add_argument("--questions", type=float, help="default 10,000, or no limit with accepted")
    parser.add_argument("--overload", type=float, default=4.0, help="times the sustained rate")
    parser.add_argument("--least-hz", type=float, default=0.0, help="ask at least this often")
    parser.add_argument("--camera-hz", type=float, default=30.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--be-cameras", type=float, metavar="HZ", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    use_own_domain()
    if chosen.be_cameras:
        end_on_sigterm()
        be_cameras(chosen.be_cameras)
    questions = chosen.questions or (10_000 if math.isinf(chosen.accepted) else math.inf)
    report = run(
        questions, chosen.accepted, chosen.overload, chosen.camera_hz, least_hz=chosen.least_hz
    )
    shown = {**asdict(report), "faults": report.faults[:20], "num_faults": len(report.faults)}
    text = json.dumps(shown, indent=2)
    print(text)
    if chosen.json:
        chosen.json.write_text(text + "\n")
    return int(bool(report.faults))


if __name__ == "__main__":
    sys.exit(main())
