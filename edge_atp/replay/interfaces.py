"""The message types of the live node, for reading and writing bags without ROS.

The definitions are the .msg files of `edge_atp_msgs`: of the sourced ROS workspace if there is
one, so that its tools read what is written, else of the checkout this package lies in.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from edge_atp.errors import BackendUnavailableError
from edge_atp.replay.bags import load_rosbags

PACKAGE = "edge_atp_msgs"
ANSWER = f"{PACKAGE}/msg/Answer"
MASKS = f"{PACKAGE}/msg/PatchMaskArray"
IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"

_CHECKOUT = Path(__file__).resolve().parents[2] / "ros_ws" / "src" / PACKAGE / "msg"


def find_definitions() -> Path:
    """Folder of the .msg files of `edge_atp_msgs`.

    Raises:
        BackendUnavailableError: neither installed nor in a checkout; says what was looked at.
    """
    prefixes = [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(":") if p]
    candidates = [*(prefix / "share" / PACKAGE / "msg" for prefix in prefixes), _CHECKOUT]
    for folder in candidates:
        if (folder / "Answer.msg").is_file():
            return folder
    looked = ", ".join(map(str, candidates))
    raise BackendUnavailableError(
        f"the message definitions of {PACKAGE} were not found (looked in {looked}): source the ROS"
        " workspace that has it, or run from a checkout of the project"
    )


def load_typestore() -> Any:
    """A ``rosbags`` typestore with ROS 2's common types and `edge_atp_msgs`.

    Raises:
        BackendUnavailableError: rosbags or the definitions are missing.
    """
    typesys = load_rosbags("typesys")
    # The types used here are the same in all later distributions.
    typestore = typesys.get_typestore(typesys.Stores.ROS2_HUMBLE)
    definitions: dict[str, Any] = {}
    for path in sorted(find_definitions().glob("*.msg")):
        text = path.read_text(encoding="utf-8")
        definitions.update(typesys.get_types_from_msg(text, f"{PACKAGE}/msg/{path.stem}"))
    typestore.register(definitions)
    return typestore
