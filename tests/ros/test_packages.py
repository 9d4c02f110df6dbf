"""The two ROS packages as colcon sees, builds and installs them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

pytest.importorskip(
    "edge_atp_msgs", reason="needs the built workspace: run through scripts/with_ros"
)

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "ros_ws" / "src"
NODE_PACKAGE = SOURCES / "edge_atp_ros"


def share(package: str) -> Path:
    from ament_index_python import get_package_share_directory

    return Path(get_package_share_directory(package))


def test_colcon_finds_both_packages_with_their_ros_build_types():
    listing = subprocess.run(
        [sys.executable, "-m", "colcon", "list", "--base-paths", SOURCES],
        capture_output=True, text=True, check=True, cwd=ROOT / "ros_ws",
    ).stdout  # fmt: skip

    types = {line.split()[0]: line.split()[-1] for line in listing.splitlines()}
    assert types == {"edge_atp": "(ros.ament_python)", "edge_atp_msgs": "(ros.ament_cmake)"}


def test_all_packages_have_one_version():
    found = {
        path: re.search(pattern, (ROOT / path).read_text(), re.MULTILINE).group(1)
        for path, pattern in {
            "pyproject.toml": r'^version = "([^"]+)"',
            "ros_ws/src/edge_atp_ros/setup.py": r'^    version="([^"]+)"',
            "ros_ws/src/edge_atp_ros/package.xml": r"<version>([^<]+)<",
            "ros_ws/src/edge_atp_msgs/package.xml": r"<version>([^<]+)<",
        }.items()
    }

    assert len(set(found.values())) == 1, found


def test_the_core_library_is_not_hidden_by_the_ros_package():
    import edge_atp_ros

    import edge_atp

    assert Path(edge_atp.__file__).parent == ROOT / "edge_atp"
    assert Path(edge_atp_ros.__file__).resolve().parent == NODE_PACKAGE / "edge_atp_ros"


@pytest.mark.parametrize(
    "name",
    ["vlm_node", "bag_player", "planner", "pick_and_place", "bag_questions", "sim_cell", "viewer"],
)
def test_node_scripts_start_with_the_interpreter_that_holds_the_core(name):
    # ros2 run and launch look in lib/<package>.
    script = share("edge_atp").parents[1] / "lib" / "edge_atp" / name

    interpreter = script.read_text().splitlines()[0].removeprefix("#!")

    assert os.access(script, os.X_OK)
    assert Path(interpreter).parent.parent == Path(sys.prefix)


def test_installed_launch_folder_has_the_layout_of_the_source():
    installed = share("edge_atp") / "launch"
    wanted = {
        path.relative_to(ROOT / "launch")
        for pattern in ("*.launch.py", "*.xml", "params/*.yaml", "security/*", "bags/**/*")
        for path in (ROOT / "launch").glob(pattern)
        if path.is_file()
    }

    assert wanted == {
        path.relative_to(installed) for path in installed.rglob("*") if path.is_file()
    }


def test_a_workspace_without_launch_files_does_not_build(tmp_path):
    copy = tmp_path / "edge_atp_ros"
    shutil.copytree(NODE_PACKAGE, copy, symlinks=True, ignore=shutil.ignore_patterns("launch"))

    build = subprocess.run(
        [sys.executable, "setup.py", "--name"], cwd=copy, capture_output=True, text=True
    )

    assert build.returncode != 0
    assert "FileNotFoundError" in build.stderr
    assert str(copy / "launch") in build.stderr


def test_every_interface_file_is_built():
    cmake = (SOURCES / "edge_atp_msgs" / "CMakeLists.txt").read_text()
    files = {
        path.relative_to(SOURCES / "edge_atp_msgs").as_posix()
        for kind in ("msg", "srv", "action")
        for path in (SOURCES / "edge_atp_msgs" / kind).iterdir()
    }

    assert files == set(re.findall(r'"((?:msg|srv|action)/\w+\.\w+)"', cmake))


def test_maintainers_have_addresses_that_the_package_format_accepts():
    # With an invalid one colcon builds the package as plain Python and says nothing.
    for package in ("edge_atp_ros", "edge_atp_msgs"):
        root = ET.parse(SOURCES / package / "package.xml").getroot()
        for maintainer in root.iter("maintainer"):
            assert re.fullmatch(r"[\w.-]+@[\w-]+(\.[\w-]+)+", maintainer.get("email"))


def test_sourcing_the_workspace_alone_gives_a_working_environment():
    setup = ROOT / "ros_ws" / "install" / "setup.bash"
    command = (
        f"source {setup} && {sys.executable} -c 'import rclpy, edge_atp_msgs.msg as m; m.Answer()'"
    )

    bare = {"PATH": os.defpath, "HOME": os.environ.get("HOME", "/")}
    shell = subprocess.run(["/bin/bash", "-c", command], env=bare, capture_output=True, text=True)

    assert shell.returncode == 0, shell.stderr
