"""The launch files: their arguments, the tables of processes they start, and, with ROS, a run."""

from __future__ import annotations

import dataclasses
import importlib.util
import signal
import sys
import types
from pathlib import Path

import pytest
import yaml

pytest.importorskip("edge_atp_ros", reason="needs the built workspace: scripts/with_ros")

from edge_atp_ros.replaying import ReplayArguments, replay
from edge_atp_ros.simulation import SimArguments, simulation
from edge_atp_ros.system import SettingError, WarehouseArguments

SHARE = Path(__file__).resolve().parents[2] / "launch"
BAG = SHARE / "bags" / "warehouse_cell"
FILES = {"warehouse": WarehouseArguments, "sim": SimArguments, "replay": ReplayArguments}
NOT_ARGUMENTS = {"player_parameters"}
TABLES = {
    "warehouse": ["vlm_node", "bag_player", "planner"],
    "sim": ["vlm_node", "sim_cell", "pick_and_place"],
    "replay": ["vlm_node", "bag_player", "bag_questions"],
}


class Recorded:
    """Stands for a class of launch: keeps what it was called with."""

    def __init__(self, *args, **kwargs) -> None:
        self.args, self.kwargs = args, kwargs
        self.name = args[0] if args else kwargs.get("name")


class Configuration(Recorded):
    def perform(self, context) -> str:
        return context[self.name]


@pytest.fixture
def load(monkeypatch):
    """Loads a launch file with stand-ins for launch and launch_ros."""
    fakes = {
        "launch": {"LaunchDescription": Recorded},
        "launch.actions": dict.fromkeys(
            ("DeclareLaunchArgument", "OpaqueFunction", "Shutdown"), Recorded
        ),
        "launch.substitutions": {"LaunchConfiguration": Configuration},
        "launch_ros": {},
        "launch_ros.actions": {"Node": Recorded},
    }
    for name, members in fakes.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    # Imported with the stand-ins, so it must go when they go.
    monkeypatch.delitem(sys.modules, "edge_atp_ros.launching", raising=False)

    def load_file(name: str) -> types.ModuleType:
        path = SHARE / f"{name}.launch.py"
        spec = importlib.util.spec_from_file_location(f"{name}_launch", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load_file
    sys.modules.pop("edge_atp_ros.launching", None)


def start(module: types.ModuleType, **given: str) -> dict[str, dict]:
    """What the launch file starts: keyword arguments of each Node by its name."""
    *arguments, function = module.generate_launch_description().args[0]
    context = {entry.name: entry.kwargs["default_value"] for entry in arguments}
    actions = function.kwargs["function"](context | given)
    return {action.kwargs["name"]: action.kwargs for action in actions}


@pytest.mark.parametrize("name", FILES)
def test_every_argument_is_declared_with_help_and_its_default(load, name):
    declared = {entry.name: entry.kwargs for entry in load(name).ARGUMENTS}

    fields = {f.name: f.default for f in dataclasses.fields(FILES[name])}
    assert set(declared) == set(fields) - NOT_ARGUMENTS
    for argument, kwargs in declared.items():
        assert kwargs["description"].endswith("."), argument
        default = fields[argument]
        assert kwargs["default_value"] == (
            str(default).lower() if isinstance(default, bool) else str(default)
        )
        assert ("true" in (kwargs["choices"] or [])) == isinstance(default, bool)


@pytest.mark.parametrize("name", FILES)
def test_the_table_is_started(load, name):
    nodes = start(load(name), engine="ort-cpu", autostart="False", log_level="warn")

    assert list(nodes) == TABLES[name]
    for kwargs in nodes.values():
        assert kwargs["package"] == "edge_atp"
        assert Path(kwargs["parameters"][0]).is_file()
        assert kwargs["ros_arguments"] == ["--log-level", "warn"]
    single = nodes["vlm_node"]["parameters"][1]
    assert single["engine"] == "ort-cpu"
    assert single["autostart"] is False
    assert single["use_sim_time"] is (name != "warehouse")
    client = nodes[TABLES[name][-1]]
    assert ("~/query", "vlm_node/query") in client["remappings"]
    assert ("~/patch_mask", "vlm_node/patch_mask") in client["remappings"]


def test_numbers_are_read_as_what_they_are(load):
    nodes = start(load("sim"), seed="7", rate="2.5", hazard="cone", num_orders="2")
    cell = nodes["sim_cell"]["parameters"][1]
    assert cell == {"seed": 7, "rate": 2.5, "hazard": "cone", "num_orders": 2}
    assert "use_sim_time" not in cell, "it makes the clock"
    assert not nodes["sim_cell"]["respawn"], "a second cell would start anew"
    assert set(start(load("sim"), planner="false")) == {"vlm_node", "sim_cell"}


def test_the_parameter_file_of_the_cell_names_its_nodes():
    content = yaml.safe_load((SHARE / "params" / "sim.yaml").read_text())
    names = {process.name for process in simulation(SimArguments(), SHARE)}
    assert set(content) == {f"/**/{name}" for name in names}


def test_a_replay_plays_once_on_the_recordings_clock_and_ends_with_its_questions(load, tmp_path):
    nodes = start(load("replay"), rate="2.0", out=str(tmp_path / "live.mcap"))

    player = nodes["bag_player"]["parameters"][1]
    assert Path(player["bag"], "metadata.yaml").samefile(BAG / "metadata.yaml")
    assert (player["publish_clock"], player["restamp"], player["loop"]) == (True, False, False)
    assert player["rate"] == 2.0
    asker = nodes["bag_questions"]
    assert asker["parameters"][1] == {
        "bag": player["bag"],
        "queries": f"{player['bag']}/questions.yaml",
        "out": str(tmp_path / "live.mcap"),
        "use_sim_time": True,
    }
    assert asker["on_exit"].kwargs["reason"] == "bag_questions has ended"
    assert nodes["vlm_node"]["on_exit"] is None
    assert not nodes["vlm_node"]["respawn"]


def test_a_replay_without_questions_only_plays(load, tmp_path):
    assert set(start(load("replay"), queries="none")) == {"vlm_node", "bag_player"}
    looped = start(load("replay"), loop="true")
    assert set(looped) == {"vlm_node", "bag_player"}
    assert looped["bag_player"]["parameters"][1]["loop"] is True
    bag = tmp_path / "drive.mcap"
    bag.touch()
    assert [p.name for p in replay(ReplayArguments(bag=str(bag)), SHARE)] == TABLES["replay"][:2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bag": "/no/such"}, "bag is /no/such"),
        ({"queries": "/no/such.yaml"}, "queries is /no/such.yaml"),
        ({"loop": True, "queries": str(BAG / "questions.yaml")}, "loop is true"),
        ({"queries": "none", "out": "x.mcap"}, "out is x.mcap"),
        ({"rate": 0.0}, "rate is 0"),
    ],
)
def test_a_replay_that_cannot_be_is_refused_by_name(arguments, message):
    with pytest.raises(SettingError, match=message):
        replay(ReplayArguments(**arguments), SHARE)


RUN_LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
service = LaunchService()
source = PythonLaunchDescriptionSource(sys.argv[1])
arguments = [tuple(pair.split(":=")) for pair in sys.argv[2:]]
include = IncludeLaunchDescription(source, launch_arguments=arguments)
service.include_launch_description(LaunchDescription([include]))
sys.exit(service.run())
"""
NEEDS_LAUNCH = "launch_ros is not on PyPI; it comes with an installed ROS 2"


def launched(start_process, tmp_path, name: str, *arguments: str):
    pytest.importorskip("launch_ros", reason=NEEDS_LAUNCH)
    command = [sys.executable, "-c", RUN_LAUNCH, str(SHARE / f"{name}.launch.py"), *arguments]
    return start_process(command, env={"ROS_LOG_DIR": str(tmp_path)})


def test_ros2_launch_brings_the_warehouse_up_and_down(start_process, tmp_path):
    process = launched(start_process, tmp_path, "warehouse")
    process.wait_for("active: cameras")
    process.wait_for("playing ")
    process.wait_for("what hazard is on the floor? ->")
    process.signal_group(signal.SIGINT)

    assert process.wait() == 0
    assert process.output().count("process has finished cleanly") == 3
    assert "Traceback" not in process.output()


def test_ros2_launch_replays_and_ends_by_itself(start_process, tmp_path):
    result = tmp_path / "live.mcap"
    process = launched(start_process, tmp_path, "replay", "rate:=4.0", f"out:={result}")
    assert process.wait() == 0
    assert result.is_file()


def test_ros2_launch_runs_the_cell(start_process, tmp_path):
    pytest.importorskip("mujoco", reason="needs the extra 'sim'")
    process = launched(start_process, tmp_path, "sim", "num_orders:=1")
    process.wait_for("done: move the", 240.0)
    process.signal_group(signal.SIGINT)
    assert process.wait() == 0
