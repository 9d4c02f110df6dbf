"""Runs a table of processes without `ros2 launch`: for the demo, the tests and machines whose
ROS 2 comes from wheels, which have no launch_ros.

Starts each process, restarts those that respawn, ends all of them in order. Output goes to one
log file per process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import yaml

from edge_atp_ros.system import RESPAWN_DELAY_S, Process

# As in `ros2 launch`: interrupt, then terminate, then kill.
_ESCALATION = ((signal.SIGINT, 3.0), (signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0))


def command_line(process: Process) -> list[str]:
    """The command that `ros2 launch` would run for a process, without `ros2`."""
    command = [sys.executable, "-m", f"edge_atp_ros.{process.executable}", "--ros-args"]
    command += ["-r", f"__node:={process.name}"]
    if process.namespace:
        command += ["-r", f"__ns:=/{process.namespace.strip('/')}"]
    for source, target in process.remappings:
        command += ["-r", f"{source}:={target}"]
    for path in process.parameter_files:
        command += ["--params-file", path]
    for name, value in process.parameters.items():
        text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
        command += ["-p", f"{name}:={text.removesuffix(chr(10)).removesuffix('...').strip()}"]
    if process.enclave:
        command += ["--enclave", process.enclave]
    return [*command, "--log-level", process.log_level]


class _Child:
    """One process of the table and its current incarnation."""

    def __init__(self, process: Process, log_path: Path) -> None:
        self.process = process
        self.log_path = log_path
        self._log = log_path.open("ab")
        self.popen = self._start()
        self.restart_s: float | None = None
        self.restarts = 0
        self.last_exit: int | None = None

    def watch(self) -> None:
        """Restart it if it has ended, respawns, and its delay is over."""
        if self.popen.poll() is None or not self.process.respawn:
            return
        if self.restart_s is None:
            self.restart_s = time.monotonic() + RESPAWN_DELAY_S
            self.last_exit = self.popen.returncode
        elif time.monotonic() >= self.restart_s:
            self.popen, self.restart_s = self._start(), None
            self.restarts += 1

    def close(self) -> None:
        self._log.close()

    def _start(self) -> subprocess.Popen[bytes]:
        # A group of its own: an interrupt at the terminal reaches the runner, which passes it on.
        return subprocess.Popen(
            command_line(self.process),
            env={**os.environ, **self.process.environment},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


class Runner:
    """Context manager that keeps the processes running.

    Args:
        processes: the table.
        log_dir: gets <name>.log of each process.
    """

    def __init__(self, processes: Sequence[Process], log_dir: Path) -> None:
        self._processes = tuple(processes)
        self._log_dir = log_dir
        self._children: dict[str, _Child] = {}
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="respawn", daemon=True)

    def __enter__(self) -> Runner:
        self._log_dir.mkdir(parents=True, exist_ok=True)
        try:
            for process in self._processes:
                log_path = self._log_dir / f"{process.name}.log"
                log_path.unlink(missing_ok=True)
                self._children[process.name] = _Child(process, log_path)
        except BaseException:
            self.stop()
            raise
        self._watcher.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.stop()

    def pid(self, name: str) -> int:
        """Process id of the current incarnation."""
        return self._children[name].popen.pid

    def restarts(self, name: str) -> int:
        """How often a process was started again."""
        return self._children[name].restarts

    def last_exit(self, name: str) -> int | None:
        """Exit code of the incarnation before the current one (negative: the signal)."""
        return self._children[name].last_exit

    def ended(self) -> dict[str, int]:
        """Exit codes of the processes that have ended and will not be restarted."""
        codes = {name: child.popen.poll() for name, child in self._children.items()}
        return {
            name: code
            for name, code in codes.items()
            if code is not None and not self._children[name].process.respawn
        }

    def log(self, name: str) -> str:
        """What a process has printed so far."""
        return self._children[name].log_path.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> dict[str, int]:
        """End every process; returns the exit codes (negative: the signal that ended it)."""
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join()
        for number, patience_s in _ESCALATION:
            running = [c.popen for c in self._children.values() if c.popen.poll() is None]
            for popen in running:
                popen.send_signal(number)
            until_s = time.monotonic() + patience_s
            for popen in running:
                try:
                    popen.wait(max(0.0, until_s - time.monotonic()))
                except subprocess.TimeoutExpired:
                    continue
        for child in self._children.values():
            child.close()
        return {name: child.popen.returncode for name, child in self._children.items()}

    def _watch(self) -> None:
        while not self._stopping.wait(0.1):
            for child in self._children.values():
                child.watch()
