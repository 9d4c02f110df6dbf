"""A recorded bag, played at its own timing into the VLM node, with its questions asked live.

    ros2 launch edge_atp replay.launch.py
    ros2 launch edge_atp replay.launch.py bag:=/data/shift_7 queries:=q.yaml out:=live.mcap

Against the reference, which is float32 (on a CPU the default model is int8):

    ros2 launch edge_atp replay.launch.py model:=warehouse_tiny:fp32 out:=live.mcap
    edge-atp diff launch/bags/warehouse_cell/reference/result.mcap live.mcap --paired-only

Ends by itself with the recording, unless loop:=true. `edge-atp replay` does the same offline. What
runs stands in edge_atp_ros.replaying; this file only turns it into launch actions.
"""

from edge_atp_ros.launching import argument, common_arguments, describe
from edge_atp_ros.replaying import ReplayArguments, replay

ARGUMENTS = [
    *common_arguments("params/warehouse.yaml"),
    argument("bag", "Recording (rosbag2) to play. Default: the shipped one.", ""),
    argument(
        "camera_topics",
        "Image topics, comma-separated, each TOPIC or NAME=TOPIC. Default: all in the bag.",
        "",
    ),
    argument(
        "queries",
        "YAML of what to ask when, as for `edge-atp replay`; none: ask nothing. Default:"
        " questions.yaml in the bag's folder.",
        "",
    ),
    argument("out", "Result bag of answers and masks: FILE.mcap or a new folder.", ""),
    argument("rate", "Speed relative to the recording.", 1.0),
    argument("loop", "Start the recording again at its end; nothing is asked then.", False),
]


def generate_launch_description():
    return describe(ARGUMENTS, ReplayArguments, replay)
