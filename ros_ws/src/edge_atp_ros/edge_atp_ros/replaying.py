"""The table of processes of a live replay: a bag at its own timing, and its questions.

`launch/replay.launch.py` turns it into launch actions. `edge-atp replay` does the same offline,
frame by frame; live, the node may skip frames, as it would on the robot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_atp_ros.system import (
    DEFAULT_BAG,
    Process,
    SettingError,
    WarehouseArguments,
    existing,
    vlm_topics,
    warehouse,
)

_START_WAIT_S = 120.0
_QUESTIONS = "questions.yaml"


@dataclass(frozen=True)
class ReplayArguments:
    """The launch arguments; "" means: not given.

    bag: rosbag2 to play; "": the shipped one. Its image topics become the cameras, unless
        ``camera_topics`` names them.
    queries: YAML of what to ask when, as for `edge-atp replay`; "": questions.yaml in the bag's
        folder; "none": ask nothing.
    out: result bag of answers and masks (FILE.mcap or a new folder); "": none is written.
    rate: speed relative to the recording.
    loop: start the recording again at its end; nothing is asked then, unless by others.
    """

    engine: str = ""
    model: str = ""
    camera_topics: str = ""
    bag: str = ""
    queries: str = ""
    out: str = ""
    rate: float = 1.0
    loop: bool = False
    params_file: str = ""
    namespace: str = ""
    autostart: bool = True
    log_level: str = "info"


def replay(arguments: ReplayArguments, share: Path) -> list[Process]:
    """VLM node, bag player with the recording's clock, and who asks the questions.

    Args:
        arguments: launch arguments.
        share: folder that holds params/, bags/ and the DDS profile.
    Raises:
        SettingError: a file does not exist, or arguments exclude each other.
    """
    if not 0.01 <= arguments.rate <= 100:
        raise SettingError(f"rate is {arguments.rate:g}; it must be in 0.01 to 100")
    bag = existing("bag", arguments.bag or share / "bags" / DEFAULT_BAG)
    queries = _queries(arguments, bag)
    if arguments.loop and queries:
        raise SettingError(
            "loop is true, and questions have their time in one passage; give queries:=none"
        )
    if arguments.out and not queries:
        raise SettingError(f"out is {arguments.out}, and nothing is asked: give queries")
    player = {
        "rate": arguments.rate,
        "loop": arguments.loop,
        "wait_for_subscriber": _START_WAIT_S,  # the node's model loads first
        "start_delay": 1.0,
    }
    processes = warehouse(
        WarehouseArguments(
            engine=arguments.engine,
            model=arguments.model,
            camera_topics=arguments.camera_topics,
            bag=str(bag),
            params_file=arguments.params_file,
            namespace=arguments.namespace,
            use_sim_time=True,
            autostart=arguments.autostart,
            use_respawn=False,
            planner=False,
            log_level=arguments.log_level,
            player_parameters=player,
        ),
        share,
    )
    if queries:
        processes.append(_asker(processes[0], bag, queries, arguments))
    return processes


def _asker(like: Process, bag: Path, queries: Path, arguments: ReplayArguments) -> Process:
    parameters: dict[str, Any] = {
        "bag": str(bag),
        "queries": str(queries),
        "out": str(Path(arguments.out).expanduser().absolute()) if arguments.out else "",
        "use_sim_time": True,
    }
    return replace(
        like,
        executable="bag_questions",
        name="bag_questions",
        parameters=parameters,
        remappings=vlm_topics("vlm_node"),
        ends_all=True,
    )


def _queries(arguments: ReplayArguments, bag: Path) -> Path | None:
    if arguments.queries == "none":
        return None
    if arguments.queries:
        return existing("queries", arguments.queries)
    beside = (bag if bag.is_dir() else bag.parent) / _QUESTIONS
    return beside if beside.is_file() and not arguments.loop else None
