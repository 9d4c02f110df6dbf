"""The table of processes of the warehouse system: the one definition of what runs.

`launch/warehouse.launch.py` turns it into launch actions and ``runner`` into child processes.
Standard library and PyYAML only: `ros2 launch` runs on the system's Python, which need not hold
the core library.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

PACKAGE = "edge_atp"
DEFAULT_BAG = "warehouse_cell"
NO_BAG = "none"
RESPAWN_DELAY_S = 2.0
_IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
_PROFILE_VARIABLE = "FASTRTPS_DEFAULT_PROFILES_FILE"


class SettingError(Exception):
    """A launch argument is wrong; the message names it, its value and what is allowed."""


@dataclass(frozen=True)
class Process:
    """One process of the system.

    executable: of the ROS package `edge_atp`; also the module that holds its ``main``.
    name: node name.
    namespace: node namespace, "" for none.
    parameter_files: ROS parameter files, later ones win.
    parameters: single parameters; they win over the files.
    remappings: (from, to) names.
    environment: variables added to those inherited.
    respawn: start it again when it ends, after RESPAWN_DELAY_S.
    ends_all: under `ros2 launch`, the others end when it does.
    log_level: debug, info, warn, error or fatal.
    enclave: SROS 2 enclave, "" for none.
    """

    executable: str
    name: str
    namespace: str = ""
    parameter_files: tuple[str, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    remappings: tuple[tuple[str, str], ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    respawn: bool = False
    ends_all: bool = False
    log_level: str = "info"
    enclave: str = ""


@dataclass(frozen=True)
class WarehouseArguments:
    """The launch arguments; the names are Nav2's where Nav2 has one. "" means: not given.

    engine: inference backend.
    model: model directory, or the name of a shipped model.
    camera_topics: comma-separated image topics, each `topic` or `name=topic`. With topics given,
        no bag is played unless `bag` names one.
    bag: recording to play as the camera; "none": real cameras; "": the shipped one. Its image
        topics become the cameras, unless `camera_topics` names them.
    params_file: ROS parameter file for all nodes.
    use_sim_time: the player publishes /clock and keeps the recorded stamps; all nodes follow.
    planner: run the planner example.
    security: encrypt and authorise with SROS 2; every node gets the enclave /edge_atp/<node>.
    keystore: the SROS 2 keystore, for security; "": ROS_SECURITY_KEYSTORE.
    """

    engine: str = ""
    model: str = ""
    camera_topics: str = ""
    bag: str = ""
    params_file: str = ""
    namespace: str = ""
    use_sim_time: bool = False
    autostart: bool = True
    use_respawn: bool = True
    planner: bool = True
    security: bool = False
    keystore: str = ""
    log_level: str = "info"
    player_parameters: dict[str, Any] = field(default_factory=dict)


def warehouse(arguments: WarehouseArguments, share: Path) -> list[Process]:
    """The processes of the warehouse system.

    Args:
        arguments: launch arguments.
        share: folder that holds params/, bags/ and the DDS profile (the repository's launch/, or
            its installed copy).
    Raises:
        SettingError: a file does not exist, or camera_topics is malformed.
    """
    params_file = existing("params_file", arguments.params_file or share / "params/warehouse.yaml")
    common: dict[str, Any] = {
        "namespace": arguments.namespace,
        "parameter_files": (str(params_file),),
        "environment": profile_environment(share),
        "log_level": arguments.log_level,
    }
    clock = {"use_sim_time": arguments.use_sim_time}
    vlm = Process(
        executable="vlm_node",
        name="vlm_node",
        parameters={"autostart": arguments.autostart, **clock, **_vlm_parameters(arguments)},
        respawn=arguments.use_respawn,
        **common,
    )
    processes = [vlm]
    if bag := _bag(arguments, share):
        replay = {"publish_clock": arguments.use_sim_time, "restamp": not arguments.use_sim_time}
        processes.append(
            Process(
                executable="bag_player",
                name="bag_player",
                # It makes the clock, so it must not follow it; and it may end: not respawned.
                parameters={"bag": str(bag), **replay, **arguments.player_parameters},
                **common,
            )
        )
    if arguments.planner:
        processes.append(
            Process(
                executable="planner",
                name="planner",
                parameters=clock,
                remappings=vlm_topics("vlm_node"),
                respawn=arguments.use_respawn,
                **common,
            )
        )
    return secured(processes, arguments.keystore) if arguments.security else processes


def secured(processes: list[Process], keystore: str) -> list[Process]:
    """The same processes, each in its SROS 2 enclave and unable to talk in the clear.

    Raises:
        SettingError: no keystore is named, or it lacks the enclave of a process.
    """
    folder = keystore or os.environ.get("ROS_SECURITY_KEYSTORE", "")
    if not folder:
        raise SettingError(
            "security is true, but no keystore is named; give keystore, or set"
            " ROS_SECURITY_KEYSTORE (docs: launch/security/README.md)"
        )
    root = existing("keystore", folder)
    variables = {
        "ROS_SECURITY_ENABLE": "true",
        # Without a valid enclave a node must not start at all.
        "ROS_SECURITY_STRATEGY": "Enforce",
        "ROS_SECURITY_KEYSTORE": str(root),
    }
    found = []
    for process in processes:
        enclave = f"/{PACKAGE}/{process.name}"
        if not (root / "enclaves" / enclave.lstrip("/")).is_dir():
            raise SettingError(
                f"keystore is {root}, which has no enclave {enclave}; make it with: ros2 security"
                f" generate_artifacts -k {root} -p launch/security/policies.xml"
            )
        environment = {**process.environment, **variables}
        found.append(replace(process, enclave=enclave, environment=environment))
    return found


def vlm_topics(vlm: str) -> tuple[tuple[str, str], ...]:
    """Remappings that connect a planner's own ~/query, ~/answer, ... to a VLM node."""
    names = ("query", "answer", "patch_mask", "set_query", "remove_query")
    return tuple((f"~/{name}", f"{vlm}/{name}") for name in names)


def parse_camera_topics(value: str) -> dict[str, str]:
    """`name=topic` or `topic`, comma-separated -> topic by camera name.

    A topic without a name is called after itself, without its last part: `/front/image_raw` is
    camera `front`.
    Raises:
        SettingError: an entry is empty, or a name occurs twice.
    """
    topics: dict[str, str] = {}
    for entry in value.split(","):
        name, separator, topic = (part.strip() for part in entry.rpartition("="))
        parts = topic.removesuffix("/compressed").strip("/").split("/")
        name = name if separator else "_".join(parts[:-1] or parts)
        if not name or not topic.strip("/"):
            raise SettingError(
                f"camera_topics is {value!r}; give topics, or name=topic, separated by commas"
            )
        if name in topics:
            raise SettingError(
                f"camera_topics is {value!r}: two cameras are called {name!r}; name them, as in"
                " left=/left/image_raw,right=/right/image_raw"
            )
        topics[name] = topic
    return topics


def recorded_cameras(bag: Path) -> dict[str, str]:
    """Image topics of a rosbag2 folder by camera name; none for a single file.

    The topics are relative, as the player publishes them.
    Raises:
        SettingError: the folder's metadata.yaml is no rosbag2 metadata.
    """
    path = bag / "metadata.yaml"
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))["rosbag2_bagfile_information"]
        entries = [topic["topic_metadata"] for topic in content["topics_with_message_count"]]
        images = [entry["name"] for entry in entries if entry["type"] in _IMAGE_TYPES]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise SettingError(f"bag is {bag}, whose metadata.yaml cannot be read: {error}") from error
    # A camera may be recorded raw and compressed: one camera.
    bases = dict.fromkeys(name.removesuffix("/compressed").lstrip("/") for name in images)
    return parse_camera_topics(",".join(bases)) if bases else {}


def _vlm_parameters(arguments: WarehouseArguments) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for name in ("engine", "model"):
        if value := getattr(arguments, name):
            parameters[name] = value
    topics = {}
    if arguments.camera_topics:
        topics = parse_camera_topics(arguments.camera_topics)
    elif arguments.bag not in ("", NO_BAG):
        topics = recorded_cameras(existing("bag", arguments.bag))
    if topics:
        parameters["cameras"] = list(topics)
        parameters["camera_topics"] = list(topics.values())
    return parameters


def _bag(arguments: WarehouseArguments, share: Path) -> Path | None:
    if arguments.bag == NO_BAG or (arguments.camera_topics and not arguments.bag):
        return None
    return existing("bag", arguments.bag or share / "bags" / DEFAULT_BAG)


def profile_environment(share: Path) -> dict[str, str]:
    """The Fast DDS profile that lets images through, unless the user has named one."""
    # Two default transports of Fast DDS lose most images; a profile of the user's own wins.
    if os.environ.get(_PROFILE_VARIABLE):
        return {}
    profile = share / "fastdds_large_images.xml"
    return {_PROFILE_VARIABLE: str(existing(_PROFILE_VARIABLE, profile))}


def existing(name: str, path: str | Path) -> Path:
    """The absolute path of a file or folder.

    Raises:
        SettingError: it does not exist; names the argument.
    """
    found = Path(path).expanduser().absolute()
    if not found.exists():
        raise SettingError(f"{name} is {path}, which does not exist")
    return found
