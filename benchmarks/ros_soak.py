"""Is anything lost when far more is asked than can be answered? Real node, cameras and clients.

    scripts/with_ros python -m benchmarks.ros_soak [--questions 10000] [--json OUT]

Four cameras at 30 Hz (640x480 rgb8, from a process of their own) and questions at several times
the rate the node sustains: most on the topic, every 25th as an action goal, beside two standing
questions. ListQueries is called five times a second throughout. Checked, exit code 1 otherwise:

    each question has exactly one final answer; what is not answered is REJECTED
    an answer is about the cameras its question named, with a header those cameras published
    each complete answer has its mask, of the same header
    standing questions' sequence numbers only rise

Printed: outcomes, the resident set's slope per 10,000 final answers, ListQueries' latencies.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from edge_atp_msgs.action import Ask
from edge_atp_msgs.msg import Answer, PatchMaskArray, Query
from edge_atp_msgs.srv import ListQueries, SetQuery
from rclpy.action import ActionClient
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import Image

from benchmarks.ros_bench import (
    NODE,
    VlmProcess,
    call,
    make_image,
    picture,
    spinning,
    use_own_domain,
    vlm_process,
    wait_until,
)

CAMERAS = ("c0", "c1", "c2", "c3")
TEXTS = ("what is the gripper holding?", "where is the red box?", "is there a blue drum?")
STANDING = {"standing-0": ("c0",), "standing-1": ("c1",)}
COMPLETE = frozenset({Answer.STATUS_FINAL, Answer.STATUS_TRUNCATED})
# The last three digits of a stamp name the camera, so that a header cannot be another's.
_MARK = 100
_GOAL_EVERY = 25
_TWO_CAMERAS_EVERY = 10
_WARM_UP_SHARE = 0.3
_SPEED_SAMPLES = 8
_DEEP = QoSProfile(depth=5000)


@dataclass(frozen=True)
class Report:
    """What was seen; ``faults`` is empty if nothing was wrong.

    sustained_hz: answers a second, one question at a time, cameras running.
    asked_hz: questions a second during the soak.
    slope_mb: growth of the resident set per 10,000 final answers after the first 30 %.
    list_queries_ms: median, 99th percentile and maximum.
    """

    questions: int
    sustained_hz: float
    asked_hz: float
    outcomes: dict[str, int]
    standing_answers: int
    resident_mb: tuple[float, float]
    slope_mb: float
    list_queries_ms: tuple[float, float, float]
    faults: tuple[str, ...]


class Clients:
    """Everyone who wants something from the node, in one process."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.asked: dict[str, tuple[str, ...]] = {}
        self.finals: dict[str, list[Answer]] = defaultdict(list)
        self.masks: dict[tuple[str, int], PatchMaskArray] = {}
        self.results: dict[str, Answer] = {}
        self.num_finals = 0
        self._goals: dict[str, object] = {}
        node.create_subscription(Answer, f"{NODE}/answer", self._on_answer, _DEEP)
        node.create_subscription(PatchMaskArray, f"{NODE}/patch_mask", self._on_mask, _DEEP)
        self._queries = node.create_publisher(Query, f"{NODE}/query", _DEEP)
        self._action = ActionClient(node, Ask, f"{NODE}/ask")

    def ready(self) -> bool:
        """Whether the node listens."""
        return self._queries.get_subscription_count() > 0 and self._action.server_is_ready()

    def ask(self, number: int) -> str:
        """Ask the question of a number; returns its id."""
        query_id = f"q{number}"
        cameras = (CAMERAS[number % len(CAMERAS)],)
        if number % _TWO_CAMERAS_EVERY == 0:
            cameras += (CAMERAS[(number + 1) % len(CAMERAS)],)
        self.asked[query_id] = cameras
        query = Query(
            query_id=query_id,
            text=TEXTS[number % len(TEXTS)],
            cameras=list(cameras),
            priority=number % 3,
        )
        if number % _GOAL_EVERY:
            self._queries.publish(query)
        else:  # in the executor: rclpy's action client loses responses otherwise
            self._node.executor.create_task(self._send_goal, query)
        return query_id

    def unanswered(self) -> list[str]:
        """Questions whose answer has not come, and goals whose result has not."""
        goals = [f"q{n}" for n in range(0, len(self.asked), _GOAL_EVERY) if f"q{n}" in self.asked]
        missing = [query_id for query_id in goals if query_id not in self.results]
        return missing + [query_id for query_id in self.asked if query_id not in self.finals]

    def faults(self) -> list[str]:
        """What is wrong with what has come."""
        found = []
        for query_id, cameras in self.asked.items():
            answers = self.finals[query_id]
            if len(answers) != 1:
                found.append(f"{query_id}: {len(answers)} final answers")
            elif (result := self.results.get(query_id)) is not None and result != answers[0]:
                found.append(f"{query_id}: the goal's result is another than the topic's answer")
            for answer in answers:
                found += self._faults_of(answer, cameras)
        for query_id, cameras in STANDING.items():
            sequences = [answer.sequence for answer in self.finals[query_id]]
            if sequences != sorted(set(sequences)):
                found.append(f"{query_id}: sequence numbers do not rise")
            for answer in self.finals[query_id]:
                found += self._faults_of(answer, cameras)
        return found

    def _faults_of(self, answer: Answer, cameras: tuple[str, ...]) -> list[str]:
        name = f"{answer.query_id} sequence {answer.sequence}"
        if answer.status not in COMPLETE:
            rejected = answer.error_code in (Answer.ERROR_REJECTED, Answer.ERROR_NO_FRAME)
            return [] if rejected else [f"{name}: {answer.error_msg or answer.status}"]
        found = []
        if tuple(answer.cameras) != cameras:
            found.append(f"{name}: about {list(answer.cameras)}, asked about {list(cameras)}")
        marks = [stamp.nanosec % 1000 for stamp in answer.frame_stamps]
        if marks != [_MARK + CAMERAS.index(camera) for camera in cameras]:
            found.append(f"{name}: stamps that these cameras did not publish: {marks}")
        if answer.header.frame_id not in cameras:
            found.append(f"{name}: frame {answer.header.frame_id!r}")
        mask = self.masks.get((answer.query_id, answer.sequence))
        if mask is None or mask.header != answer.header:
            found.append(f"{name}: no mask of its header")
        return found

    def _send_goal(self, query: Query) -> None:
        sent = self._action.send_goal_async(Ask.Goal(query=query))
        sent.add_done_callback(lambda future: self._on_accepted(future.result(), query.query_id))

    def _on_accepted(self, handle: object, query_id: str) -> None:
        def store(future: object) -> None:
            self.results[query_id] = future.result().result.answer
            del self._goals[query_id]

        self._goals[query_id] = handle  # rclpy itself keeps only a weak reference
        handle.get_result_async().add_done_callback(store)

    def _on_answer(self, answer: Answer) -> None:
        self.finals[answer.query_id].append(answer)
        self.num_finals += 1

    def _on_mask(self, mask: PatchMaskArray) -> None:
        for one in mask.masks:  # the scores are most of it, and 10,000 of them would weigh
            one.scores = []
        self.masks[mask.query_id, mask.sequence] = mask


class Observer:
    """Samples the node's memory and calls ListQueries, in threads of its own."""

    def __init__(self, node: Node, process: VlmProcess, clients: Clients) -> None:
        self.memory: list[tuple[int, int]] = []
        self.list_s: list[float] = []
        self._node, self._process, self._clients = node, process, clients
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._sample, self._list)
        ]

    def __enter__(self) -> Observer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def slope_mb(self) -> float:
        """Least squares over the samples after the warm-up, MB per 10,000 final answers."""
        first = int(len(self.memory) * _WARM_UP_SHARE)
        finals, resident = np.array(self.memory[first:], dtype=np.float64).T
        return float(np.polyfit(finals, resident, 1)[0] * 10_000 / 1e6)

    def _sample(self) -> None:
        while not self._stopped.wait(0.5):
            self.memory.append((self._clients.num_finals, self._process.resident_bytes()))

    def _list(self) -> None:
        client = self._node.create_client(ListQueries, f"{NODE}/list_queries")
        wait_until(client.service_is_ready, "list_queries")
        while not self._stopped.wait(0.2):
            done = threading.Event()
            begun_s = time.perf_counter()
            future = client.call_async(ListQueries.Request())
            future.add_done_callback(lambda _future, done=done: done.set())
            if not done.wait(30.0):
                raise RuntimeError("list_queries did not answer within 30 s")
            self.list_s.append(time.perf_counter() - begun_s)
            assert len(future.result().queries) == len(STANDING)


def run(
    questions: int,
    overload: float = 4.0,
    camera_hz: float = 30.0,
    queue_size: int = 64,
    least_hz: float = 0.0,
) -> Report:
    """Soak a node with questions at ``overload`` times the sustained rate.

    Args:
        least_hz: ask at this rate even if the machine is too busy to sustain a fraction of it.
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
    cameras = [sys.executable, "-m", "benchmarks.ros_soak", "--be-cameras", str(camera_hz)]
    with vlm_process(*parameters) as process, spinning("soak") as node:
        publisher = subprocess.Popen(cameras)
        try:
            process.wait_for("active: cameras")
            return _soak(process, node, questions, overload, least_hz)
        finally:
            publisher.terminate()
            publisher.wait()


def _soak(
    process: VlmProcess, node: Node, questions: int, overload: float, least_hz: float
) -> Report:
    clients = Clients(node)
    wait_until(clients.ready, "the node listens")
    sustained_hz = _sustained_hz(clients)
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
    with Observer(node, process, clients) as observer:
        begun_s = time.perf_counter()
        period_s = 1.0 / max(overload * sustained_hz, least_hz)
        for number in range(1, questions + 1):
            clients.ask(number)
            due_s = begun_s + number * period_s
            time.sleep(max(0.0, due_s - time.perf_counter()))
        asked_hz = questions / (time.perf_counter() - begun_s)
        try:
            wait_until(lambda: not clients.unanswered(), "the last answers", 420.0)
            late = []
        except RuntimeError:
            late = [f"{query_id}: no answer" for query_id in clients.unanswered()]
        time.sleep(1.0)  # for second answers that must not come
    return _report(clients, observer, questions, sustained_hz, asked_hz, late)


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
    observer: Observer,
    questions: int,
    sustained_hz: float,
    asked_hz: float,
    late: list[str],
) -> Report:
    outcomes: Counter[str] = Counter()
    for number in range(1, questions + 1):
        for answer in clients.finals[f"q{number}"]:
            complete = answer.status in COMPLETE
            outcomes["complete" if complete else f"error {answer.error_code}"] += 1
    resident = [resident for _finals, resident in observer.memory]
    lists_ms = np.array(observer.list_s) * 1e3
    percentiles = np.percentile(lists_ms, (50, 99, 100))
    return Report(
        questions=questions,
        sustained_hz=sustained_hz,
        asked_hz=asked_hz,
        outcomes=dict(outcomes),
        standing_answers=sum(len(clients.finals[query_id]) for query_id in STANDING),
        resident_mb=(resident[0] / 1e6, resident[-1] / 1e6),
        slope_mb=observer.slope_mb(),
        list_queries_ms=tuple(float(value) for value in percentiles),
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
                stamp_ns = time.time_ns() // 1000 * 1000 + _MARK + index
                publishers[index].publish(make_image(pixels[index], name, stamp_ns))
            due_s += 1.0 / rate_hz
            time.sleep(max(0.0, due_s - time.perf_counter()))


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=10_000)
    parser.add_argument("--overload", type=float, default=4.0, help="times the sustained rate")
    parser.add_argument("--least-hz", type=float, default=0.0, help="ask at least this often")
    parser.add_argument("--camera-hz", type=float, default=30.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--be-cameras", type=float, metavar="HZ", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    use_own_domain()
    if arguments.be_cameras:
        be_cameras(arguments.be_cameras)
    report = run(
        arguments.questions, arguments.overload, arguments.camera_hz, least_hz=arguments.least_hz
    )
    shown = {**asdict(report), "faults": report.faults[:20], "num_faults": len(report.faults)}
    text = json.dumps(shown, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    return int(bool(report.faults))


if __name__ == "__main__":
    sys.exit(main())
