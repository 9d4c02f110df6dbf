"""Waiting for what other threads and processes do, on a machine that may be far too busy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.task import Future

# For what takes milliseconds on an idle machine. Nobody waits that long unless something is wrong.
PATIENCE_S = 120.0


def wait_until(
    holds: Callable[[], Any], what: str = "it", timeout_s: float = PATIENCE_S, poll_s: float = 0.01
) -> Any:
    """Wait until ``holds`` returns something true; return it."""
    end = time.monotonic() + timeout_s
    while not (result := holds()):
        assert time.monotonic() < end, f"{what} did not happen in {timeout_s:g} s"
        time.sleep(poll_s)
    return result


class Spinner:
    """Runs a node's callbacks in a thread, from now until ``stop``.

    ``stop`` shuts the executor down once its thread has ended: rclpy's ``shutdown`` removes the
    guard conditions that a thread still spinning may be about to wait on.
    """

    def __init__(self, node: Node) -> None:
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(node)
        self._stopped = Future()
        self._thread = threading.Thread(
            target=self._executor.spin_until_future_complete, args=(self._stopped,), daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a callback under way is finished."""
        self._stopped.set_result(None)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "a callback does not return"
        self._executor.shutdown()
