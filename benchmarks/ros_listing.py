"""How long ListQueries takes, seen from both ends, and beside a node that does nothing else.

Run by ros_soak. A process of its own calls two services in turn, ten times a second: the VLM
node's ~/list_queries, and the same service of a bare rclpy node that returns a stored response.
What the bare one takes is what the machine, DDS and the caller cost. Both servers note, too, how
long each request took from its sending until its response was handed to DDS: the caller's own wait
for a processor is not part of that.

    python -m benchmarks.ros_listing vlm FILE --ros-args ...     the VLM node, noting times
    python -m benchmarks.ros_listing bare FILE                   the bare node, noting times
    python -m benchmarks.ros_listing call FILE                   the caller
"""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rclpy
from edge_atp_msgs.msg import QueryStatus
from edge_atp_msgs.srv import ListQueries
from rclpy.client import Client
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.service import Service

from benchmarks.ros_bench import (
    NODE,
    ask_until_answered,
    end_on_sigterm,
    end_process,
    spinning,
    use_own_domain,
    wait_until,
)

_NAME = "list_queries"
_BARE = "/bare"
_PERIOD_S = 0.1
_PATIENCE_S = 30.0
_TERMINATED = -15
_MODULE = ("-m", "benchmarks.ros_listing")
Course = tuple[float, float, float]


@dataclass(frozen=True)
class Listing:
    """Median, 99th percentile and maximum in ms.

    node, bare: whole calls of either. node_own, bare_own: up to the response's sending.
    """

    calls: int
    node: Course
    bare: Course
    node_own: Course
    bare_own: Course


class Lister:
    """Context manager: the caller and the bare node.

    Args:
        folder: gets their notes, and those of the VLM node.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def vlm_program(self) -> tuple[str, ...]:
        """What to run as the VLM node, so that it notes its times."""
        return (*_MODULE, "vlm", str(self._folder / "node"))

    def __enter__(self) -> Lister:
        for kind in ("bare", "call"):
            command = [sys.executable, *_MODULE, kind, str(self._folder / kind)]
            self._processes.append(subprocess.Popen(command))
        return self

    def __exit__(self, *_error: object) -> None:
        for process in self._processes:
            end_process(process)

    def begun(self) -> bool:
        """Whether the first calls have been answered."""
        return bool(self._rows("call"))

    def read(self) -> Listing:
        """What was measured so far.

        Raises:
            RuntimeError: the caller has ended early, as when a call was not answered.
        """
        ends = [process.poll() for process in self._processes]
        if ends != [None, None]:
            raise RuntimeError(f"the bare node and the caller of ListQueries ended: {ends}")
        if time.time() - (self._folder / "call").stat().st_mtime > _PATIENCE_S:
            raise RuntimeError(f"a call of ListQueries was not answered within {_PATIENCE_S:g} s")
        calls = np.array(self._rows("call"))
        node_own, bare_own = (np.array(self._rows(kind)) for kind in ("node", "bare"))
        courses = (calls[:, 0], calls[:, 1], node_own[:, 0], bare_own[:, 0])
        return Listing(len(calls), *(_course(values_ms) for values_ms in courses))

    def _rows(self, kind: str) -> list[list[float]]:
        path = self._folder / kind
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        return [[float(value) for value in line.split()] for line in whole.splitlines()]


def _course(values_ms: np.ndarray) -> Course:
    median, p99, maximum = np.percentile(values_ms, (50, 99, 100)).round(2).tolist()
    return median, p99, maximum


def note_times(path: Path) -> None:
    """Let this process's ListQueries services note the age of each request they have answered.

    Its age by the sender's stamp; with one machine there is one clock.
    """
    send, file = Service.send_response, path.open("w")

    def send_and_note(service: Service, response: object, header: object) -> None:
        send(service, response, header)
        if service.srv_name.endswith(_NAME):
            now_ns = time.time_ns()
            file.write(f"{(now_ns - header.source_timestamp) / 1e6:.3f} {now_ns / 1e9:.3f}\n")
            file.flush()

    Service.send_response = send_and_note


def be_bare() -> None:
    """Serve ListQueries with a stored response of two standing questions."""
    with spinning("bare") as node:
        stored = ListQueries.Response(success=True, queries=[QueryStatus(), QueryStatus()])
        node.create_service(ListQueries, f"{_BARE}/{_NAME}", lambda _request, _response: stored)
        threading.Event().wait()


def be_caller(path: Path) -> None:
    """Call both, one after the other, until terminated."""
    context = Context()
    rclpy.init(context=context)
    node = rclpy.create_node("lister", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    names = (f"{NODE}/{_NAME}", f"{_BARE}/{_NAME}")
    clients = [node.create_client(ListQueries, name) for name in names]
    for client, name in zip(clients, names, strict=True):
        wait_until(client.service_is_ready, name)
        ask_until_answered(
            client,
            ListQueries.Request(),
            lambda future, seconds: executor.spin_until_future_complete(future, seconds),
        )
    # Collected between the calls, so that no pause of this process is taken for the node's; what is
    # there already is left alone, so that it takes no time.
    gc.disable()
    gc.freeze()
    due_s = time.perf_counter()
    try:
        with path.open("w") as file:
            while True:
                rows = (f"{_call_ms(executor, client):.3f}" for client in clients)
                file.write(" ".join(rows) + "\n")
                file.flush()
                gc.collect()
                due_s = max(due_s + _PERIOD_S, time.perf_counter())
                time.sleep(max(0.0, due_s - time.perf_counter()))
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)


def _call_ms(executor: SingleThreadedExecutor, client: Client) -> float:
    begun_s = time.perf_counter()
    future = client.call_async(ListQueries.Request())
    while not future.done():  # a timeout would cost a timer each time, which rclpy keeps
        executor.spin_once()
    return (time.perf_counter() - begun_s) * 1e3


def main(arguments: Sequence[str]) -> int:
    """One of the three processes; see the module's docstring."""
    kind, path = arguments[0], Path(arguments[1])
    if kind == "vlm":
        from edge_atp_ros import vlm_node

        note_times(path)
        return vlm_node.main()
    use_own_domain()
    end_on_sigterm()
    if kind == "bare":
        note_times(path)
        be_bare()
    be_caller(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
