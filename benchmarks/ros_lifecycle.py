"""Does the VLM node give back what it took? Transitions over and over, memory after each cycle.

    scripts/with_ros python -m benchmarks.ros_lifecycle [--cycles 100]

One cycle: configure, activate, a question answered, deactivate, activate, deactivate, cleanup.
Prints the resident set, threads and open files every tenth cycle, and the slope of the second
half. Exits with 1 if memory grows by more than 0.1 MB a cycle there, or threads or files move.
Some 40 cycles warm up (``benchmarks/LOG.md``): with fewer than 80 the second half still grows.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from edge_atp_msgs.msg import Answer, Query
from lifecycle_msgs.msg import Transition
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from benchmarks.ros_bench import (
    NODE,
    VlmProcess,
    change_state,
    make_image,
    picture,
    spinning,
    use_own_domain,
    vlm_process,
    wait_until,
)

CYCLE = (
    Transition.TRANSITION_DEACTIVATE,
    Transition.TRANSITION_ACTIVATE,
    Transition.TRANSITION_DEACTIVATE,
    Transition.TRANSITION_CLEANUP,
)
LIMIT_MB_PER_CYCLE = 0.1


@dataclass(frozen=True)
class Course:
    """Resident set in MB, threads and open files after each cycle's cleanup."""

    resident_mb: tuple[float, ...]
    threads: tuple[int, ...]
    files: tuple[int, ...]

    def slope_mb(self) -> float:
        """Growth per cycle in the second half, least squares."""
        settled = self.resident_mb[len(self.resident_mb) // 2 :]
        return float(np.polyfit(np.arange(len(settled)), settled, 1)[0])

    def spread(self) -> tuple[int, int]:
        """How far threads and files move in the second half."""
        first = len(self.threads) // 2
        return tuple(max(v[first:]) - min(v[first:]) for v in (self.threads, self.files))


def run(cycles: int, on_cycle: Callable[[int, VlmProcess], None] | None = None) -> Course:
    """Cycle a node."""
    resident, threads, files = [], [], []
    with vlm_process() as process, spinning("lifecycle_bench") as node:
        process.wait_for("unconfigured")
        asker = _Asker(node)
        for cycle in range(cycles):
            change_state(node, Transition.TRANSITION_CONFIGURE)
            change_state(node, Transition.TRANSITION_ACTIVATE)
            asker.ask(f"cycle-{cycle}")
            for transition in CYCLE:
                change_state(node, transition)
            resident.append(process.resident_bytes() / 1e6)
            counts = process.counts()
            threads.append(counts[0])
            files.append(counts[1])
            if on_cycle:
                on_cycle(cycle, process)
    return Course(tuple(resident), tuple(threads), tuple(files))


class _Asker:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._answers: dict[str, Answer] = {}
        self._images = node.create_publisher(Image, "/camera/image_raw", qos_profile_sensor_data)
        self._queries = node.create_publisher(Query, f"{NODE}/query", 10)
        node.create_subscription(Answer, f"{NODE}/answer", self._on_answer, 10)

    def ask(self, query_id: str) -> None:
        """Ask until a question is answered: what is matched on one side may not be on the other."""
        ends = (self._images, self._queries)
        wait_until(lambda: all(e.get_subscription_count() for e in ends), "subscriptions")
        image = make_image(picture(), "cam", time.time_ns())
        for attempt in range(50):
            self._images.publish(image)
            self._queries.publish(Query(query_id=f"{query_id}-{attempt}", text="what is there?"))
            end_s = time.monotonic() + 0.5
            while time.monotonic() < end_s:
                answered = any(i.startswith(query_id + "-") for i in self._answers)
                if answered:
                    return
                time.sleep(0.01)
        raise RuntimeError(f"no answer in {query_id}")

    def _on_answer(self, answer: Answer) -> None:
        if answer.status in (Answer.STATUS_FINAL, Answer.STATUS_TRUNCATED):
            self._answers[answer.query_id] = answer


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=100)
    cycles = parser.parse_args().cycles
    use_own_domain()
    print("cycle  resident MB  threads  files")

    def show(cycle: int, process: VlmProcess) -> None:
        if cycle % 10 == 9 or cycle == 0:
            row = (process.resident_bytes() / 1e6, *process.counts())
            print(f"{cycle + 1:5d}  {row[0]:11.1f}  {row[1]:7d}  {row[2]:5d}", flush=True)

    course = run(cycles, show)
    slope_mb, (threads, files) = course.slope_mb(), course.spread()
    print(f"slope {slope_mb * 1e3:+.1f} kB a cycle; threads move by {threads}, files by {files}")
    return int(slope_mb > LIMIT_MB_PER_CYCLE or threads > 0 or files > 0)


if __name__ == "__main__":
    sys.exit(main())
