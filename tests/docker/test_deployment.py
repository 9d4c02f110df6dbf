"""What the images, the compose file and the service promise: no root, health, read-only models."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
ROOT_USERS = {"root", "0"}


def instructions(path: Path) -> list[tuple[str, str]]:
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_runs_without_root_and_reports_its_health(path):
    found = instructions(path)
    users = [value for name, value in found if name == "USER"]
    assert users
    assert users[-1] not in ROOT_USERS
    (health,) = [value for name, value in found if name == "HEALTHCHECK"]
    assert "docker/healthcheck.py" in health
    runs = " ".join(value for name, value in found if name == "RUN")
    assert "make setup" in runs, "the same target as on a machine without containers"


def test_there_is_an_image_for_each_platform():
    assert [path.name for path in DOCKERFILES] == [
        "jetpack6.Dockerfile",
        "jetpack7.Dockerfile",
        "x86.Dockerfile",
    ]


def test_compose_starts_again_and_cannot_write_models():
    content = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
    for service in content["services"].values():
        assert service["restart"] == "unless-stopped"
        assert (DOCKER / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        (models,) = [v for v in service["volumes"] if "models" in v]
        source, _, mode = models.partition(":")
        assert (DOCKER / source).resolve() == ROOT / "models"
        assert mode.endswith(":ro")


def test_the_service_restarts_interrupts_and_is_confined():
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str
    unit.read_string((DOCKER / "systemd" / "edge_atp.service").read_text(encoding="utf-8"))
    service = unit["Service"]
    assert service["User"] not in ROOT_USERS
    assert service["Restart"] == "on-failure"
    assert service["KillSignal"] == "SIGINT"
    assert service["ProtectSystem"] == "strict"
    lines = (DOCKER / "systemd" / "edge_atp.env").read_text(encoding="utf-8").splitlines()
    variables = {line.partition("=")[0] for line in lines if not line.startswith("#")}
    assert variables == {"ROS_SETUP", "LAUNCH_ARGUMENTS"}
    for variable in variables:
        assert f"${variable}" in service["ExecStart"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_reads_the_service(tmp_path):
    # `verify` also demands that the user and the folders exist: only syntax is asked for here.
    unit = tmp_path / "edge_atp.service"
    text = (DOCKER / "systemd" / "edge_atp.service").read_text(encoding="utf-8")
    unit.write_text(text.replace("User=robot\n", ""), encoding="utf-8")
    result = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert "Unknown" not in result.stderr
    assert "Failed to parse" not in result.stderr
