"""What the launch files share: the table of processes as launch actions, arguments as dataclasses.

Imports `launch` and `launch_ros`, which come with an installed ROS 2 only; nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from edge_atp_ros.system import PACKAGE, RESPAWN_DELAY_S, Process
from launch import LaunchDescription

BOOLEANS = ("true", "false", "True", "False")
LOG_LEVELS = ("debug", "info", "warn", "error", "fatal")

Arguments = TypeVar("Arguments")


def argument(name: str, text: str, default: Any, choices: Sequence[str] = ()) -> Any:
    """A launch argument.

    Args:
        text: help, shown by `--show-args`.
        default: bool, number or text.
        choices: the only values allowed; given by itself for a bool.
    """
    if isinstance(default, bool):
        default, choices = str(default).lower(), BOOLEANS
    return DeclareLaunchArgument(
        name,
        default_value=str(default),
        description=text,
        choices=list(choices) if choices else None,
    )


def common_arguments(params_file: str) -> list[Any]:
    """Arguments that every launch file of this package has."""
    return [
        argument("engine", "Inference backend: auto, ort (ort-cpu, ort-cuda) or trt.", ""),
        argument("model", "Model directory, or the name of a model shipped with the project.", ""),
        argument("params_file", f"ROS parameter file for all nodes. Default: {params_file}.", ""),
        argument("namespace", "Namespace of all nodes.", ""),
        argument("autostart", "Bring the VLM node to active without a lifecycle manager.", True),
        argument("log_level", "Log level of all nodes.", "info", LOG_LEVELS),
    ]


def describe(
    arguments: Sequence[Any],
    kind: type[Arguments],
    table: Callable[[Arguments, Path], list[Process]],
) -> LaunchDescription:
    """The description that starts a table of processes.

    Args:
        arguments: launch arguments, named as the fields of ``kind``.
        kind: dataclass of the arguments; a field's type decides how its text is read.
        table: makes the processes of the arguments and the installed launch folder.
    """

    def start(context: Any) -> list[Any]:
        share = Path(get_package_share_directory(PACKAGE)) / "launch"
        processes = table(read_arguments(context, arguments, kind), share)
        return [node_action(process) for process in processes]

    return LaunchDescription([*arguments, OpaqueFunction(function=start)])


def read_arguments(context: Any, arguments: Sequence[Any], kind: type[Arguments]) -> Arguments:
    """The values given, as the dataclass."""
    defaults = kind()
    values = {
        entry.name: _read(
            LaunchConfiguration(entry.name).perform(context), getattr(defaults, entry.name)
        )
        for entry in arguments
    }
    return kind(**values)


def _read(text: str, like: Any) -> Any:
    if isinstance(like, bool):
        return text.lower() == "true"
    return type(like)(text)


def node_action(process: Process) -> Any:
    """A row of the table as a launch action."""
    # A parameter mapping must not be empty: launch_ros would write an unreadable file.
    single = [process.parameters] if process.parameters else []
    return Node(
        package=PACKAGE,
        executable=process.executable,
        name=process.name,
        namespace=process.namespace,
        parameters=[*process.parameter_files, *single],
        remappings=list(process.remappings),
        additional_env=process.environment,
        ros_arguments=[
            *("--log-level", process.log_level),
            *(("--enclave", process.enclave) if process.enclave else ()),
        ],
        respawn=process.respawn,
        respawn_delay=RESPAWN_DELAY_S,
        output="screen",
        emulate_tty=True,
        on_exit=Shutdown(reason=f"{process.name} has ended") if process.ends_all else None,
    )
