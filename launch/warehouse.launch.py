"""The warehouse system: VLM node, recorded camera, planner example.

    ros2 launch edge_atp warehouse.launch.py
    ros2 launch edge_atp warehouse.launch.py camera_topics:=/front/image_raw
    ros2 launch edge_atp warehouse.launch.py --show-args

What runs stands in edge_atp_ros.system; this file only turns it into launch actions.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from edge_atp_ros.system import PACKAGE, RESPAWN_DELAY_S, Process, WarehouseArguments, warehouse
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription

BOOLEANS = ["true", "false", "True", "False"]
ARGUMENTS = [
    DeclareLaunchArgument(
        "engine",
        default_value="",
        description="Inference backend: auto, ort (ort-cpu, ort-cuda) or trt.",
    ),
    DeclareLaunchArgument(
        "model",
        default_value="",
        description="Model directory, or the name of a model shipped with the project.",
    ),
    DeclareLaunchArgument(
        "camera_topics",
        default_value="",
        description="Image topics, comma-separated, each TOPIC or NAME=TOPIC; "
        "no bag is played then, unless bag names one.",
    ),
    DeclareLaunchArgument(
        "bag",
        default_value="",
        description="Recording (rosbag2) played as the camera; none: real cameras only. "
        "Default: the shipped one.",
    ),
    DeclareLaunchArgument(
        "params_file",
        default_value="",
        description="ROS parameter file for all nodes. Default: params/warehouse.yaml.",
    ),
    DeclareLaunchArgument("namespace", default_value="", description="Namespace of all nodes."),
    DeclareLaunchArgument(
        "use_sim_time",
        default_value="false",
        choices=BOOLEANS,
        description="Follow /clock; a bag then publishes it and keeps its recorded stamps.",
    ),
    DeclareLaunchArgument(
        "autostart",
        default_value="true",
        choices=BOOLEANS,
        description="Bring the VLM node to active without a lifecycle manager.",
    ),
    DeclareLaunchArgument(
        "use_respawn",
        default_value="true",
        choices=BOOLEANS,
        description="Start a node again when its process ends.",
    ),
    DeclareLaunchArgument(
        "planner", default_value="true", choices=BOOLEANS, description="Run the planner example."
    ),
    DeclareLaunchArgument(
        "log_level",
        default_value="info",
        choices=["debug", "info", "warn", "error", "fatal"],
        description="Log level of all nodes.",
    ),
]


def generate_launch_description():
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=start_processes)])


def start_processes(context):
    share = Path(get_package_share_directory(PACKAGE)) / "launch"
    return [node_action(process) for process in warehouse(read_arguments(context), share)]


def read_arguments(context):
    values = {}
    for argument in ARGUMENTS:
        text = LaunchConfiguration(argument.name).perform(context)
        values[argument.name] = text.lower() == "true" if argument.choices == BOOLEANS else text
    return WarehouseArguments(**values)


def node_action(process: Process):
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
        ros_arguments=["--log-level", process.log_level],
        respawn=process.respawn,
        respawn_delay=RESPAWN_DELAY_S,
        output="screen",
        emulate_tty=True,
    )
