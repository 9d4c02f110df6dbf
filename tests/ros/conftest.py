"""Fixtures for tests that start real processes over DDS.

Every module gets a ROS domain of its own and stays on this machine, so that modules after each
other, test runs beside each other, or a robot, do not hear each other. Processes are started in
groups, ended as groups, and their output is shown when the test fails.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vlm_client import VlmClient

# Above 101 the DDS ports of a domain reach into Linux's range of ephemeral ports; 97 is the
# benchmarks'.
LAST_DOMAIN_ID = 96
# Where each module's search begins: what the module before may have left behind is elsewhere.
_first_offsets = itertools.count(os.getpid())


class NodeProcess:
    """One process under test with its own process group and a log file of its output."""

    def __init__(self, command: Sequence[str], log: Path, env: dict[str, str] | None) -> None:
        self.log = log
        self.command = list(command)
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def is_running(self) -> bool:
        return self._popen.poll() is None

    def wait_for(self, text: str, timeout_s: float = 120.0) -> str:
        """Wait until the output contains `text`; return the output so far."""
        end = time.monotonic() + timeout_s
        while True:
            running = self.is_running()  # before reading, so that no last words are missed
            output = self.output()
            if text in output:
                return output
            if not running or time.monotonic() > end:
                state = "is running" if running else f"ended with {self._popen.returncode}"
                pytest.fail(f"{self.command} {state} and did not say {text!r}:\n{output}")
            time.sleep(0.02)

    def wait(self, timeout_s: float = 120.0) -> int:
        """Wait until the process ends by itself; return its exit status."""
        return self._popen.wait(timeout_s)

    def signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, number)

    def stop(self, timeout_s: float = 120.0) -> int:
        """Interrupt the group as Ctrl-C does, kill what is left; return the exit status."""
        if self.is_running():
            self.signal_group(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(timeout_s)
        self.signal_group(signal.SIGKILL)
        return self._popen.wait()


StartProcess = Callable[..., NodeProcess]


@contextlib.contextmanager
def _reserved_domain() -> Iterator[int]:
    """Hold a ROS domain id that no other test run on this machine holds."""
    folder = Path(tempfile.gettempdir()) / f"edge_atp_ros_domains_{os.getuid()}"
    folder.mkdir(exist_ok=True)
    first = next(_first_offsets)
    for offset in range(LAST_DOMAIN_ID):
        domain_id = 1 + (first + offset) % LAST_DOMAIN_ID
        with (folder / str(domain_id)).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield domain_id
            return
    pytest.fail(f"all ROS domains up to {LAST_DOMAIN_ID} are in use (locks in {folder})")


@pytest.fixture(scope="module", autouse=True)
def ros_domain_id() -> Iterator[int]:
    """Give the module a ROS domain of its own on this machine; returns its id."""
    patch = pytest.MonkeyPatch()
    with _reserved_domain() as domain_id:
        patch.setenv("ROS_DOMAIN_ID", str(domain_id))
        if os.environ.get("ROS_DISTRO") == "humble":
            patch.setenv("ROS_LOCALHOST_ONLY", "1")
        else:
            patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        yield domain_id
        patch.undo()


def _starter(folder: Path) -> Iterator[tuple[StartProcess, list[NodeProcess]]]:
    started: list[NodeProcess] = []

    def start(
        command: Sequence[str], *, name: str = "process", env: dict[str, str] | None = None
    ) -> NodeProcess:
        process = NodeProcess(command, folder / f"{len(started)}_{name}.log", env)
        started.append(process)
        return process

    try:
        yield start, started
    finally:
        for process in reversed(started):
            process.stop()


@pytest.fixture
def start_process(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[StartProcess]:
    """Start processes that end with the test: start_process(command, name=..., env=...)."""
    for start, started in _starter(tmp_path):
        request.node.stash[STARTED] = started
        yield start


@pytest.fixture(scope="module")
def start_module_process(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[StartProcess]:
    """Start processes that all tests of a module share, such as one node."""
    for start, started in _starter(tmp_path_factory.mktemp("processes")):
        request.node.stash[STARTED] = started
        yield start


STARTED = pytest.StashKey[list[NodeProcess]]()


# The imports below need the built workspace; the modules that lack it are skipped before.


@pytest.fixture(scope="module")
def node(start_module_process: StartProcess) -> NodeProcess:
    """The active VLM node of a module, which may start another under this name."""
    from vlm_client import start_vlm_node

    process: NodeProcess = start_vlm_node(start_module_process)
    return process


@pytest.fixture(scope="module")
def client(node: NodeProcess) -> Iterator[VlmClient]:
    """The client that all tests of a module share; the node hears it."""
    from vlm_client import VlmClient

    with VlmClient() as client:
        client.wait_until_active()
        yield client


@pytest.fixture
def early_client() -> Iterator[VlmClient]:
    """A client of one test's own that is there before any node."""
    from vlm_client import VlmClient

    with VlmClient() as client:
        yield client


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Iterator[None]:
    """Show what the processes of a failed test said."""
    report = yield
    if report.failed:
        for node in item.listchain():
            for process in node.stash.get(STARTED, []):
                title = f"output of {process.log.stem} (pid {process.pid})"
                report.sections.append((title, process.output()[-8000:]))
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this folder `ros`."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ros)
