"""Runs a node until Ctrl-C or SIGTERM, and ends it in order.

Imports nothing heavy: the signal handlers are in place before the node's own modules load, so
that an interrupt during start-up is as quiet as one later. `ros2 launch` delivers an interrupt
twice (once through the terminal, once itself); the second one must not break the shutdown.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

_POLL_S = 0.1
# What a node may take to send its last results.
_FINISH_S = 3.0  # reached only where a busy machine delivers late
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StartError(Exception):
    """A node cannot start; the message says why and what to do."""


class StopRequest:
    """True once SIGINT, SIGTERM or SIGHUP has arrived."""

    def __init__(self) -> None:
        self._requested = False
        for number in _SIGNALS:
            signal.signal(number, self._request)

    def __bool__(self) -> bool:
        return self._requested

    def _request(self, _number: int, _frame: Any) -> None:
        self._requested = True


def run_node(load: Callable[[], Callable[[], Any]], args: Sequence[str] | None = None) -> int:
    """Create a node, spin it until a signal arrives, destroy it.

    Args:
        load: imports the node's class and returns it. If a node has a method ``start``, it is
            called before spinning; once an attribute ``finished`` is true, the node ends by
            itself, with the exit code in its attribute ``exit_code``. If it has a method
            ``finish``, it is spun on at the end until that returns True, or for three seconds.
        args: command line with ROS arguments; None: the process's own.
    Returns:
        The exit code: 0 after a signal or the node's own end, 1 if the node could not start.
    """
    for number in _SIGNALS:
        signal.signal(number, _exit_at_once)
    try:
        return _run(load, args)
    except StartError as error:
        reason = str(error)
    except ModuleNotFoundError as error:
        reason = (
            f"{error.name} is not installed for {sys.executable}; install it there, or build and"
            " start the nodes with the interpreter that has it (scripts/with_ros in a checkout)"
        )
    finally:
        # While the interpreter ends, it gives up its handlers: a second interrupt would kill it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    print(f"cannot start: {reason}", file=sys.stderr)
    return 1


def _exit_at_once(_number: int, _frame: Any) -> None:
    # Importing takes a second or more, and nothing exists yet that has to be closed.
    os._exit(0)


def _create(create: Callable[[], Any]) -> Any:
    try:
        return create()
    except Exception as error:
        # rclpy keeps RCLError in a private module.
        if type(error).__name__ == "RCLError":
            raise StartError(str(error)) from error
        raise


def _run(load: Callable[[], Callable[[], Any]], args: Sequence[str] | None) -> int:
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    create = load()
    stop = StopRequest()
    try:
        rclpy.init(
            args=None if args is None else list(args),
            signal_handler_options=SignalHandlerOptions.NO,
        )
    except Exception as error:  # RCLError, which rclpy keeps in a private module
        raise StartError(str(error)) from error
    node = None
    try:
        node = _create(create)
        if hasattr(node, "start") and not stop:
            node.start()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not stop and not getattr(node, "finished", False):
            executor.spin_once(timeout_sec=_POLL_S)
        _finish(node, executor)
        return getattr(node, "exit_code", 0)
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.shutdown()


def _finish(node: Any, executor: Any) -> None:
    end_s = time.monotonic() + _FINISH_S
    while hasattr(node, "finish") and not node.finish() and time.monotonic() < end_s:
        executor.spin_once(timeout_sec=_POLL_S)
