"""What does the node add to the pipeline's own time, and how much camera can it take?

    scripts/with_ros python -m benchmarks.ros_overhead [--images 200] [--skip-capacity]

Overhead: an image is published, and a standing question's answer about it arrives. From that time
go the pipeline's own (preprocessing to decoding, as the answer reports it) and what a bare rclpy
node needs to receive the same image and publish an empty Answer. The two alternate, image by
image, so that a busy machine is busy for both.

Capacity: for some numbers of standing questions that share one camera, the highest camera rate at
which under 5 % of the published frames remain without an answer, whoever lost them: the transport,
or the node because newer ones came first. Rates that the publisher does not reach do not count.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import numpy as np
from edge_atp_msgs.msg import Answer, Query
from edge_atp_msgs.srv import ListQueries, RemoveQuery, SetQuery
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import Image

from benchmarks.ros_bench import (
    NODE,
    call,
    make_image,
    picture,
    spinning,
    use_own_domain,
    vlm_process,
    wait_until,
)

CAMERA, ECHO = "/camera/image_raw", "/echo/image_raw"
QUESTION = "what is the gripper holding?"
RATES_HZ = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 25.0, 30.0, 45.0, 60.0)
STANDING = (1, 2, 4, 8)
MOST_DROPPED = 0.05
_SECONDS_PER_RATE = 5.0
_LAST_ANSWERS_S = 0.5
_WARM_UP = 10
_DEEP = QoSProfile(depth=1000)


class Probe:
    """Publishes images and notes when what was said about each arrives."""

    def __init__(self, node: Node) -> None:
        self._pixels = picture()
        self._arrived = threading.Condition()
        self._answers: dict[int, tuple[float, Answer]] = {}
        self.camera = node.create_publisher(Image, CAMERA, qos_profile_sensor_data)
        self.echo = node.create_publisher(Image, ECHO, qos_profile_sensor_data)
        node.create_subscription(Answer, f"{NODE}/answer", self._on_answer, _DEEP)
        node.create_subscription(Answer, "/echo/answer", self._on_answer, _DEEP)

    def ready(self) -> bool:
        """Whether both sides listen."""
        return min(p.get_subscription_count() for p in (self.camera, self.echo)) > 0

    def round_trip(self, publisher: object) -> tuple[float, Answer] | None:
        """Seconds from publishing an image to the arrival of its answer; None: lost."""
        stamp_ns = time.time_ns()
        image = make_image(self._pixels, "cam", stamp_ns)
        begun_s = time.perf_counter()
        publisher.publish(image)
        with self._arrived:
            if not self._arrived.wait_for(lambda: stamp_ns in self._answers, timeout=10.0):
                return None
            arrived_s, answer = self._answers.pop(stamp_ns)
        return arrived_s - begun_s, answer

    def publish_at(self, rate_hz: float, seconds: float) -> int:
        """Publish on the camera at a rate; returns how many."""
        count, begun_s = 0, time.perf_counter()
        while time.perf_counter() - begun_s < seconds:
            self.camera.publish(make_image(self._pixels, "cam", time.time_ns()))
            count += 1
            time.sleep(max(0.0, begun_s + count / rate_hz - time.perf_counter()))
        return count

    def _on_answer(self, answer: Answer) -> None:
        now_s = time.perf_counter()
        stamp = answer.header.stamp
        with self._arrived:
            self._answers[stamp.sec * 10**9 + stamp.nanosec] = (now_s, answer)
            self._arrived.notify_all()


def pipeline_s(answer: Answer) -> float:
    """The pipeline's own share of an answer's time."""
    return float(answer.latency.total - answer.latency.queue_wait)


def hold(node: Node, number: int) -> None:
    """Set the standing question of a number."""
    query = Query(query_id=f"standing-{number}", text=QUESTION, mode=Query.MODE_STANDING)
    response = call(node, SetQuery, "set_query", SetQuery.Request(query=query))
    if not response.success:
        raise RuntimeError(response.error_msg)


def measure_overhead(probe: Probe, images: int) -> dict[str, float]:
    """Medians in ms; ``added`` is what remains for the node."""
    echo_s, total_s, own_s = [], [], []
    for number in range(images + _WARM_UP):
        echo = probe.round_trip(probe.echo)
        answered = probe.round_trip(probe.camera)
        if echo is None or answered is None or number < _WARM_UP:
            continue
        if answered[1].status not in (Answer.STATUS_FINAL, Answer.STATUS_TRUNCATED):
            raise RuntimeError(f"no answer: {answered[1].error_msg}")
        echo_s.append(echo[0])
        total_s.append(answered[0])
        own_s.append(pipeline_s(answered[1]))
    total, own, echo_times = (np.array(v) * 1e3 for v in (total_s, own_s, echo_s))
    return {
        "images": float(len(total)),
        "publish to answer": float(np.median(total)),
        "pipeline": float(np.median(own)),
        "bare echo": float(np.median(echo_times)),
        "added": float(np.median(total - own - echo_times)),
    }


def measure_capacity(node: Node, probe: Probe) -> dict[int, tuple[float, float]]:
    """Highest camera rate in Hz, and the share unanswered there, by number of questions."""
    found = {}
    for count in STANDING:
        for number in range(count):
            hold(node, number)
        found[count] = _highest_rate(node, probe, count)
        for number in range(count):
            request = RemoveQuery.Request(query_id=f"standing-{number}")
            call(node, RemoveQuery, "remove_query", request)
        print(
            f"{count} standing: {found[count][0]:g} Hz, {found[count][1]:.1%} unanswered",
            flush=True,
        )
    return found


def _highest_rate(node: Node, probe: Probe, standing: int) -> tuple[float, float]:
    best = (0.0, 0.0)
    for rate_hz in RATES_HZ:
        before = _num_answered(node)
        published = probe.publish_at(rate_hz, _SECONDS_PER_RATE)
        time.sleep(_LAST_ANSWERS_S)
        share = 1.0 - (_num_answered(node) - before) / (published * standing)
        kept_up = published > (1.0 - MOST_DROPPED) * rate_hz * _SECONDS_PER_RATE
        if share >= MOST_DROPPED or not kept_up:
            print(f"  {rate_hz:g} Hz: {published} published, {share:.1%} unanswered", flush=True)
            return best
        best = (rate_hz, share)
    return best


def _num_answered(node: Node) -> int:
    response = call(node, ListQueries, "list_queries", ListQueries.Request())
    return sum(status.answered for status in response.queries)


def be_echo() -> None:
    """The bare node: an image in, an Answer with its header out."""
    with spinning("echo") as node:
        publisher = node.create_publisher(Answer, "/echo/answer", _DEEP)
        node.create_subscription(
            Image,
            ECHO,
            lambda image: publisher.publish(Answer(header=image.header)),
            qos_profile_sensor_data,
        )
        threading.Event().wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--skip-capacity", action="store_true")
    parser.add_argument("--be-echo", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    use_own_domain()
    if chosen.be_echo:
        be_echo()
    echo = subprocess.Popen([sys.executable, "-m", "benchmarks.ros_overhead", "--be-echo"])
    try:
        with vlm_process("autostart:=true") as process, spinning("overhead") as node:
            process.wait_for("active: cameras")
            probe = Probe(node)
            wait_until(probe.ready, "both sides listen")
            hold(node, 0)
            time.sleep(1.0)
            for name, value in measure_overhead(probe, chosen.images).items():
                print(f"{name:20s} {value:8.2f}{'' if name == 'images' else ' ms'}", flush=True)
            if not chosen.skip_capacity:
                measure_capacity(node, probe)
    finally:
        echo.terminate()
        echo.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
