"""Which Python a fresh machine's set-up takes, and what it says when none will do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "setup"


@pytest.fixture
def find_python(tmp_path):
    """Run find_python with only the given interpreters on PATH; returns the process."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def run(interpreters: dict[str, str], python: str = "") -> subprocess.CompletedProcess[str]:
        for name, script in interpreters.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
        script = (
            f"source {SCRIPTS}/progress.sh; source {SCRIPTS}/interpreter.sh; find_python wheels"
        )
        env = {**os.environ, "PATH": str(folder), "PYTHON": python}
        return subprocess.run(
            ["/bin/bash", "-c", script], env=env, capture_output=True, text=True, timeout=30
        )

    return run


# Stands for an interpreter that passes every check of the script given on its input.
SUITABLE = "echo suitable"
# What a pyenv shim of a version that is not switched on does.
BROKEN_SHIM = "echo 'pyenv: python3.12: command not found' >&2; exit 127"


def test_the_newest_suitable_one_is_taken(find_python, tmp_path):
    found = find_python({"python3.10": SUITABLE, "python3.11": SUITABLE, "python3": SUITABLE})

    assert found.stdout.strip() == str(tmp_path / "bin" / "python3.11")


def test_a_name_on_path_that_does_not_run_is_passed_over(find_python, tmp_path):
    found = find_python({"python3.12": BROKEN_SHIM, "python3": SUITABLE})

    assert found.stdout.strip() == str(tmp_path / "bin" / "python3")


def test_without_a_suitable_one_every_reason_and_the_apt_packages_are_named(find_python):
    reason = "is Python 3.13, needed is 3.10, 3.11 or 3.12"
    found = find_python({"python3.12": BROKEN_SHIM, "python3": f"echo '{reason}'"})

    assert found.returncode == 1
    assert "bin/python3.12 does not run" in found.stderr
    assert f"bin/python3 {reason}" in found.stderr
    assert "apt install python3 python3-venv python3-dev" in found.stderr


def test_a_named_interpreter_is_the_only_candidate(find_python):
    found = find_python({"python3": SUITABLE, "python3.9": "echo 'is too old'"}, "python3.9")

    assert found.returncode == 1
    assert "python3.9 is too old" in found.stderr


def test_a_named_interpreter_that_is_not_there_is_said_so(find_python):
    found = find_python({"python3": SUITABLE}, "/nowhere/python3.12")

    assert found.returncode == 1
    assert "/nowhere/python3.12 is on PATH" in found.stderr


def test_this_interpreter_passes_the_real_checks(find_python):
    base = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"

    assert find_python({}, str(base)).stdout.strip() == str(base)
