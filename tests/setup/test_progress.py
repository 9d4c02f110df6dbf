"""What set-up shows of a long step, and what it leaves behind when it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

PROGRESS = Path(__file__).resolve().parents[2] / "scripts" / "setup" / "progress.sh"


@pytest.fixture
def start(tmp_path):
    """Start a shell script with the steps at hand; its log is tmp_path/setup.log."""

    def run(script: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["/bin/bash", "-c", f"set -euo pipefail; source {PROGRESS}\n{script}"],
            env={**os.environ, "SETUP_LOG": str(tmp_path / "setup.log")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A test run started in the background ignores interrupts, and its children would.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return run


def test_a_step_shows_its_label_and_hides_its_output(start, tmp_path):
    shown, _ = start("step 'a thing' echo chatter").communicate(timeout=20)

    assert "done a thing" in shown
    assert "chatter" not in shown
    assert "chatter" in (tmp_path / "setup.log").read_text()


def test_a_failed_step_shows_its_own_output_and_stops(start):
    process = start(
        "noisy() { echo the reason; return 3; }\n"
        "step first echo before\nstep second noisy\necho after"
    )
    shown, errors = process.communicate(timeout=20)

    assert process.returncode == 1
    assert "FAILED second" in shown
    assert "the reason" in shown
    assert "before" not in shown
    assert "after" not in shown
    assert "'second' failed with status 3" in errors
    assert "setup.log" in errors


def test_interrupting_ends_the_grandchildren_too(start, tmp_path):
    pid_file = tmp_path / "pid"
    process = start(
        f"nested() {{ sh -c 'echo $$ > {pid_file}; exec sleep 60'; }}\nstep long nested"
    )
    while not (pid_file.exists() and pid_file.read_text().strip()):
        assert process.poll() is None
        time.sleep(0.02)
    grandchild = int(pid_file.read_text())

    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)

    assert process.returncode == 130
    for _ in range(100):
        try:
            state = Path(f"/proc/{grandchild}/stat").read_text().split()[2]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    pytest.fail(f"process {grandchild} is still there")
