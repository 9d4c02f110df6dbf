"""The table of processes, and the commands made of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("edge_atp_ros", reason="needs the built workspace: scripts/with_ros")

from edge_atp_ros.runner import Runner, command_line
from edge_atp_ros.system import (
    Process,
    SettingError,
    WarehouseArguments,
    parse_camera_topics,
    warehouse,
)
from waiting import wait_until

SHARE = Path(__file__).resolve().parents[2] / "launch"


def table(**arguments) -> dict[str, Process]:
    return {process.name: process for process in warehouse(WarehouseArguments(**arguments), SHARE)}


def test_by_default_the_recorded_cell_the_vlm_node_and_the_planner_run():
    processes = table()

    assert list(processes) == ["vlm_node", "bag_player", "planner"]
    assert processes["vlm_node"].parameters == {"autostart": True, "use_sim_time": False}
    assert processes["vlm_node"].respawn
    bag = processes["bag_player"]
    assert bag.parameters["bag"] == str(SHARE / "bags" / "warehouse_cell")
    assert bag.parameters["restamp"]
    assert not bag.respawn, "a recording that has ended must not start again"
    for process in processes.values():
        assert process.parameter_files == (str(SHARE / "params" / "warehouse.yaml"),)


def test_the_parameter_file_names_the_nodes_of_the_table():
    content = yaml.safe_load((SHARE / "params" / "warehouse.yaml").read_text())
    assert set(content) == {f"/**/{name}" for name in table()}


def test_camera_topics_replace_the_recording():
    processes = table(camera_topics="/front/image_raw,left=/cam2/image", engine="ort-cpu")

    assert set(processes) == {"vlm_node", "planner"}
    parameters = processes["vlm_node"].parameters
    assert parameters["cameras"] == ["front", "left"]
    assert parameters["camera_topics"] == ["/front/image_raw", "/cam2/image"]
    assert parameters["engine"] == "ort-cpu"
    assert "bag_player" in table(camera_topics="/front/image_raw", bag=str(SHARE / "bags"))
    assert set(table(bag="none", planner=False)) == {"vlm_node"}


def test_with_sim_time_the_recordings_clock_rules():
    processes = table(use_sim_time=True)

    assert processes["vlm_node"].parameters["use_sim_time"]
    assert processes["planner"].parameters["use_sim_time"]
    player = processes["bag_player"].parameters
    assert player["publish_clock"]
    assert not player["restamp"]
    assert "use_sim_time" not in player, "it makes the clock"


@pytest.mark.parametrize(
    ("value", "topics"),
    [
        ("/camera/image_raw", {"camera": "/camera/image_raw"}),
        ("camera/color/image_raw", {"camera_color": "camera/color/image_raw"}),
        ("image", {"image": "image"}),
        ("/top/image_raw/compressed", {"top": "/top/image_raw/compressed"}),
        (" a = /x/y , /b/z", {"a": "/x/y", "b": "/b/z"}),
    ],
)
def test_camera_topics_are_named_after_themselves(value, topics):
    assert parse_camera_topics(value) == topics


@pytest.mark.parametrize("value", [",", "a=", "=/x", "/a/x,/a/y", "a=/x,a=/y"])
def test_malformed_camera_topics_are_refused(value):
    with pytest.raises(SettingError, match="camera_topics"):
        parse_camera_topics(value)


def write_metadata(folder: Path, *topics: tuple[str, str]) -> Path:
    entries = [{"topic_metadata": {"name": name, "type": kind}} for name, kind in topics]
    content = {"rosbag2_bagfile_information": {"topics_with_message_count": entries}}
    (folder / "metadata.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_the_image_topics_of_a_given_bag_become_the_cameras(tmp_path):
    raw, compressed = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
    bag = write_metadata(
        tmp_path,
        ("/left/image_raw", raw),
        ("/left/image_raw/compressed", compressed),
        ("/arm/wrist/image/compressed", compressed),
        ("/tf", "tf2_msgs/msg/TFMessage"),
    )
    processes = table(bag=str(bag))
    assert processes["bag_player"].parameters["bag"] == str(bag)
    parameters = processes["vlm_node"].parameters
    assert parameters["cameras"] == ["left", "arm_wrist"]
    assert parameters["camera_topics"] == ["left/image_raw", "arm/wrist/image"]

    named = table(bag=str(bag), camera_topics="eye=/arm/wrist/image")["vlm_node"].parameters
    assert named["cameras"] == ["eye"]
    shipped = table(bag=str(SHARE / "bags" / "warehouse_cell"))["vlm_node"].parameters
    assert shipped["camera_topics"] == ["camera/image_raw"]


def test_a_bag_with_damaged_metadata_is_named(tmp_path):
    (tmp_path / "metadata.yaml").write_text("a: 1")
    with pytest.raises(SettingError, match=str(tmp_path)):
        table(bag=str(tmp_path))


@pytest.mark.parametrize("name", ["bag", "params_file"])
def test_a_file_that_is_missing_is_named(name):
    with pytest.raises(SettingError, match=f"{name} is /no/such, which does not exist"):
        table(**{name: "/no/such"})


def test_the_profile_is_set_unless_the_user_has_one(monkeypatch):
    monkeypatch.delenv("FASTRTPS_DEFAULT_PROFILES_FILE", raising=False)
    environment = table()["vlm_node"].environment
    assert Path(environment["FASTRTPS_DEFAULT_PROFILES_FILE"]).is_file()
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", "/mine.xml")
    assert table()["vlm_node"].environment == {}


def test_sourcing_the_workspace_names_the_profile():
    """A client in another shell needs it as much as the node does."""
    index = pytest.importorskip("ament_index_python", reason="needs the built workspace")
    setup = Path(index.get_package_prefix("edge_atp")).parent / "local_setup.bash"
    if not setup.is_file():
        pytest.skip(f"the workspace was installed without {setup.name} (merged layout)")
    variable = "FASTRTPS_DEFAULT_PROFILES_FILE"
    script = f"source {setup} >/dev/null; echo ${variable}"
    env = {name: value for name, value in os.environ.items() if name != variable}
    for given in ({}, {variable: "/mine.xml"}):
        out = subprocess.run(
            ["bash", "-c", script], env=env | given, capture_output=True, text=True, check=True
        ).stdout.strip()
        if given:
            assert out == "/mine.xml", "a profile of the user's own wins"
        else:
            assert Path(out).samefile(SHARE / "fastdds_large_images.xml")


def test_a_command_line_carries_everything():
    process = Process(
        executable="planner",
        name="eve",
        namespace="cell",
        parameter_files=("/p.yaml",),
        parameters={"on": True, "ratio": 0.5, "name": "x: y", "list": ["a", "b, c"], "empty": ""},
        remappings=(("~/query", "vlm/query"),),
        log_level="warn",
    )
    command = command_line(process)

    assert command[:4] == [sys.executable, "-m", "edge_atp_ros.planner", "--ros-args"]
    pairs = list(zip(command[4::2], command[5::2], strict=True))
    assert ("-r", "__node:=eve") in pairs
    assert ("-r", "__ns:=/cell") in pairs
    assert ("-r", "~/query:=vlm/query") in pairs
    assert ("--params-file", "/p.yaml") in pairs
    assert ("--log-level", "warn") in pairs
    given = dict(value.split(":=", 1) for option, value in pairs if option == "-p")
    assert {name: yaml.safe_load(value) for name, value in given.items()} == process.parameters


def test_the_runner_restarts_what_respawns_and_reports_what_ended(tmp_path, monkeypatch):
    # Stand-ins for nodes: a module that sleeps, and one that ends at once.
    package = tmp_path / "edge_atp_ros"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "sleeper.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(60)\n")
    (package / "ender.py").write_text("raise SystemExit(3)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("edge_atp_ros.runner.RESPAWN_DELAY_S", 0.1)
    processes = [Process("sleeper", "sleeper", respawn=True), Process("ender", "ender")]

    with Runner(processes, tmp_path / "logs") as runner:
        wait_until(lambda: "up" in runner.log("sleeper"))
        os.kill(runner.pid("sleeper"), signal.SIGKILL)
        wait_until(lambda: runner.restarts("sleeper") == 1)
        wait_until(lambda: runner.log("sleeper").count("up") == 2)
        wait_until(lambda: runner.ended() == {"ender": 3})
        pid = runner.pid("sleeper")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
