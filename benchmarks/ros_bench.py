"""What the ROS benchmarks share: a VLM node in a process of its own, cameras, a client.

Nothing here measures; see ros_soak, ros_overhead and ros_lifecycle.
"""

from __future__ import annotations

import array
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import rclpy
from builtin_interfaces.msg import Time
from lifecycle_msgs.srv import ChangeState
from numpy.typing import NDArray
from rclpy.client import Client
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.task import Future
from sensor_msgs.msg import Image

NODE = "/vlm_node"
_VLM_NODE = ("-m", "edge_atp_ros.vlm_node")
_PATIENCE_S = 240.0
_ASK_AGAIN_S = 5.0


class VlmProcess:
    """The VLM node as a process.

    Args:
        parameters: ROS parameters, NAME:=VALUE.
        log_path: gets its output.
        program: what Python runs.
    """

    def __init__(
        self, parameters: Sequence[str], log_path: Path, program: Sequence[str] = _VLM_NODE
    ) -> None:
        command = [sys.executable, *program, "--ros-args"]
        for parameter in parameters:
            command += ["-p", parameter]
        self._log_path = log_path
        with log_path.open("wb") as log:
            self._popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        self._process = psutil.Process(self._popen.pid)

    def wait_for(self, text: str) -> None:
        """Wait until its output contains a text.

        Raises:
            RuntimeError: it ended, or did not say so in a minute.
        """
        end_s = time.monotonic() + _PATIENCE_S
        while text not in self.output():
            if self._popen.poll() is not None or time.monotonic() > end_s:
                raise RuntimeError(f"the node did not say {text!r}:\n{self.output()}")
            time.sleep(0.05)

    def output(self) -> str:
        """What it has printed."""
        return self._log_path.read_text(errors="replace")

    def resident_bytes(self) -> int:
        """Resident set now."""
        return int(self._process.memory_info().rss)

    def suspend(self, seconds: float) -> None:
        """Stop it for a while."""
        self._process.suspend()
        time.sleep(seconds)
        self._process.resume()

    def cpu_s(self) -> float:
        """CPU seconds so far, user and system."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def counts(self) -> tuple[int, int]:
        """Threads and open files; threads that have been joined are counted for a moment longer."""
        threads, files = [], []
        for _ in range(5):
            time.sleep(0.01)
            threads.append(self._process.num_threads())
            files.append(self._process.num_fds())
        return min(threads), min(files)

    def stop(self) -> int:
        """Interrupt it; returns the exit code."""
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGINT)
        try:
            return self._popen.wait(10)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            return self._popen.wait()


@contextlib.contextmanager
def vlm_process(*parameters: str, program: Sequence[str] = _VLM_NODE) -> Iterator[VlmProcess]:
    """A VLM node that ends with the block."""
    with tempfile.TemporaryDirectory() as folder:
        process = VlmProcess(parameters, Path(folder) / "vlm_node.log", program)
        try:
            yield process
        finally:
            process.stop()


@contextlib.contextmanager
def spinning(name: str) -> Iterator[Node]:
    """A node of this process, spun in a thread of its own."""
    context = Context()
    rclpy.init(context=context)
    node = rclpy.create_node(name, context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    try:
        yield node
    finally:
        executor.shutdown()
        thread.join(5.0)
        node.destroy_node()
        rclpy.shutdown(context=context)


def end_on_sigterm() -> None:
    """Let SIGTERM unwind this process: one that is just killed leaves its 68 MB in /dev/shm."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def end_process(process: subprocess.Popen[bytes]) -> None:
    """End a process of a benchmark, gently first."""
    process.terminate()
    try:
        process.wait(10.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until(holds: Callable[[], Any], what: str, patience_s: float = _PATIENCE_S) -> None:
    """Wait for a condition.

    Raises:
        RuntimeError: it did not come true.
    """
    end_s = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > end_s:
            raise RuntimeError(f"timeout after {patience_s:g} s: {what}")
        time.sleep(0.005)


def call(node: Node, kind: Any, name: str, request: Any) -> Any:
    """Call a service of the VLM node from another thread than the spinning one."""
    client = node.create_client(kind, f"{NODE}/{name}")
    try:
        wait_until(client.service_is_ready, f"service {name}")
        return ask_until_answered(client, request, _wait_for)
    finally:
        node.destroy_client(client)


def ask_until_answered(
    client: Client, request: Any, wait: Callable[[Future, float], object]
) -> Any:
    """Call a service that this side has matched, again while no response comes.

    The other side matches a moment later; until then requests and responses are lost.

    Args:
        wait: waits for a future, so many seconds at most.
    Raises:
        RuntimeError: there is no response.
    """
    end_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end_s:
        future = client.call_async(request)
        wait(future, _ASK_AGAIN_S)
        if future.done():
            return future.result()
        client.remove_pending_request(future)
    raise RuntimeError(f"timeout after {_PATIENCE_S:g} s: response of {client.srv_name}")


def _wait_for(future: Future, seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while not future.done() and time.monotonic() < end_s:
        time.sleep(0.005)


def change_state(node: Node, transition: int) -> None:
    """Ask for a lifecycle transition.

    Raises:
        RuntimeError: it was refused.
    """
    request = ChangeState.Request()
    request.transition.id = transition
    if not call(node, ChangeState, "change_state", request).success:
        raise RuntimeError(f"transition {transition} was refused")


def make_image(pixels: NDArray[np.uint8], frame_id: str, stamp_ns: int) -> Image:
    """An rgb8 image; the conversion of the pixels to the message costs a copy, not more."""
    height, width = pixels.shape[:2]
    image = Image(height=height, width=width, encoding="rgb8", step=3 * width)
    image.data = array.array("B", pixels.tobytes())
    image.header.frame_id = frame_id
    image.header.stamp = Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return image


def picture(height: int = 480, width: int = 640, seed: int = 0) -> NDArray[np.uint8]:
    """(height, width, 3) smooth colours."""
    rows, cols = np.mgrid[0:height, 0:width]
    phase = np.random.default_rng(seed).uniform(0, 6, 6)
    channels = [
        128 + 100 * np.sin(rows / height * 7 + phase[c]) * np.cos(cols / width * 5 + phase[c + 3])
        for c in range(3)
    ]
    return np.stack(channels, axis=-1).astype(np.uint8)


def use_own_domain() -> None:
    """Stay on this machine, and off the domain of a robot that may run here."""
    os.environ.setdefault("ROS_DOMAIN_ID", "97")
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
