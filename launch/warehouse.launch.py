"""The warehouse system: VLM node, recorded camera, planner example.

    ros2 launch edge_atp warehouse.launch.py
    ros2 launch edge_atp warehouse.launch.py camera_topics:=/front/image_raw
    ros2 launch edge_atp warehouse.launch.py --show-args

What runs stands in edge_atp_ros.system; this file only turns it into launch actions.
"""

from edge_atp_ros.launching import argument, common_arguments, describe
from edge_atp_ros.system import WarehouseArguments, warehouse

ARGUMENTS = [
    *common_arguments("params/warehouse.yaml"),
    argument(
        "camera_topics",
        "Image topics, comma-separated, each TOPIC or NAME=TOPIC; no bag is played then, unless"
        " bag names one.",
        "",
    ),
    argument(
        "bag",
        "Recording (rosbag2) played as the camera; none: real cameras only. Default: the shipped"
        " one.",
        "",
    ),
    argument(
        "use_sim_time",
        "Follow /clock; a bag then publishes it and keeps its recorded stamps.",
        False,
    ),
    argument("use_respawn", "Start a node again when its process ends.", True),
    argument("planner", "Run the planner example.", True),
    argument(
        "security",
        "Encrypt and authorise with SROS 2, as launch/security/policies.xml says.",
        False,
    ),
    argument("keystore", "SROS 2 keystore. Default: $ROS_SECURITY_KEYSTORE.", ""),
]


def generate_launch_description():
    return describe(ARGUMENTS, WarehouseArguments, warehouse)
