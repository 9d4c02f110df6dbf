"""Parameters of the pick-and-place planner: the rack, the camera's pose, when to believe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rclpy.node import Node

from edge_atp.errors import ConfigError
from edge_atp_ros.client import AnswerGuard
from edge_atp_ros.declaring import declare
from edge_atp_ros.looking import Belief
from edge_atp_ros.process import StartError
from edge_atp_ros.shelf import CameraModel, Points, ShelfGeometry


@dataclass(frozen=True)
class PlacingSettings:
    """home_m: (3,) in the shelf frame. heights_m: height of each kind of item. camera: without
    its focal length and centre, which CameraInfo gives.
    """

    shelf: ShelfGeometry
    camera: CameraModel
    guard: AnswerGuard
    belief: Belief
    home_m: Points
    heights_m: dict[str, float]
    attempts: int
    retry_pause_s: float
    hold_s: float
    answer_timeout_s: float
    gripper_s: float
    arm_timeout_s: float


def declare_placing(node: Node) -> PlacingSettings:
    """Declare every parameter and read it.

    Raises:
        StartError: a value is out of range, or two do not fit together; names them.
    """
    try:
        return PlacingSettings(
            shelf=_shelf(node),
            camera=_camera(node),
            guard=_guard(node),
            belief=_belief(node),
            home_m=np.array(_point(node, "home", (0.15, -2.53, 2.75), "where the arm rests")),
            heights_m=_heights(node),
            attempts=declare(node, "attempts", 3, "tries of a question before giving up", 1, 100),
            retry_pause_s=declare(
                node, "retry_pause", 0.5, "seconds between two tries (ROS time)", 0.0, 60.0
            ),
            hold_s=declare(
                node,
                "hold_time",
                60.0,
                "longest wait for a clear floor, seconds (ROS time); then the order fails",
                0.0,
                86400.0,
            ),
            answer_timeout_s=declare(
                node, "answer_timeout", 10.0, "longest wait for an answer, wall s", 0.1, 600.0
            ),
            gripper_s=declare(
                node, "gripper_time", 0.4, "time the gripper takes, seconds (ROS time)", 0.0, 60.0
            ),
            arm_timeout_s=declare(
                node, "arm_timeout", 60.0, "longest wait for the arm, wall s", 0.1, 3600.0
            ),
        )
    except ConfigError as error:
        raise StartError(f"parameter {error}") from error


def _shelf(node: Node) -> ShelfGeometry:
    return ShelfGeometry(
        shelves=declare(node, "shelves", ("top", "middle", "bottom"), "names, from top to bottom"),
        board_heights_m=declare(
            node, "board_heights", (3.2, 2.2, 1.2), "z of each shelf's board, m, same order"
        ),
        num_columns=declare(node, "num_columns", 4, "slots of a shelf", 1, 100),
        slot_width_m=declare(node, "slot_width", 1.0, "distance of two slots, m", 0.01, 10.0),
        slot_height_m=declare(node, "slot_height", 0.92, "clear height, m", 0.01, 10.0),
        item_depth_m=declare(
            node, "item_depth", 0.38, "x of the plane in which items stand, m", 0.0, 10.0
        ),
        frame_id=declare(node, "shelf_frame", "shelf", "frame of the goal poses"),
    )


def _camera(node: Node) -> CameraModel:
    position = _point(node, "camera_position", (-8.412413, -0.45, 3.302558), "of the camera")
    orientation = declare(
        node,
        "camera_orientation",
        (-0.53366, 0.53366, -0.463904, 0.463904),
        "quaternion x, y, z, w of the camera's optical frame in the shelf frame",
    )
    return CameraModel((1.0, 1.0), (0.0, 0.0), position, orientation)


def _guard(node: Node) -> AnswerGuard:
    return AnswerGuard(
        max_age_s=declare(
            node, "max_answer_age", 1.0, "oldest image acted upon, seconds", 0.001, 3600.0
        ),
        min_confidence=declare(
            node, "min_confidence", 0.6, "least confidence acted upon", 0.0, 1.0
        ),
        frame_id=declare(
            node, "camera_frame", "cell_camera_optical_frame", "frame id the images must have"
        ),
        needs_masks=True,
    )


def _belief(node: Node) -> Belief:
    return Belief(
        min_kept_share=declare(
            node,
            "min_kept_share",
            0.5,
            "least share of a named slot's patches that the model must have kept",
            0.0,
            1.0,
        ),
        evidence_weight=declare(
            node, "evidence_weight", 0.25, "how far the mask shifts a goal", 0.0, 1.0
        ),
        max_shift_m=declare(node, "max_shift", 0.1, "the most it shifts it, m", 0.0, 10.0),
        use_choices=declare(
            node, "use_choices", True, "ask yes-or-no questions as closed answer sets"
        ),
    )


def _heights(node: Node) -> dict[str, float]:
    kinds = declare(node, "item_kinds", ("box", "drum", "tote"), "kinds of items")
    heights = declare(node, "item_heights", (0.62, 0.8, 0.34), "height of each kind, m, same order")
    if len(kinds) != len(heights):
        raise ConfigError(
            f"item_heights has {len(heights)} values for {len(kinds)} item_kinds; give one each"
        )
    return dict(zip(kinds, heights, strict=True))


def _point(
    node: Node, name: str, default: tuple[float, float, float], text: str
) -> tuple[float, ...]:
    value: tuple[float, ...] = declare(
        node, name, default, f"{text}: x, y, z in the shelf frame, m"
    )
    if len(value) != 3:
        raise ConfigError(f"{name} is {list(value)}; give x, y, z")
    return value
