"""A planner's side of a simple arm: goal poses out, arrivals in, a gripper to open and close.

For a worker thread of the planner's: the calls wait, while the node's executor goes on.
"""

from __future__ import annotations

import threading
import time

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.clock import Clock
from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_msgs.msg import Bool

from edge_atp.errors import EdgeAtpError
from edge_atp_ros.convert import to_ns
from edge_atp_ros.shelf import Points

_QOS = QoSProfile(depth=10)
_POLL_S = 0.05


class ArmError(EdgeAtpError):
    """The arm did not do what it was told, or the planner is ending."""


class ArmClient:
    """Publishes ~/goal_pose and ~/close_gripper, listens to ~/arrived.

    A goal's stamp names it: the arm answers with the pose it has reached, under the same stamp.

    Args:
        node: the planner.
        frame_id: frame of all poses.
        home_m: (3,) where the arm is out of the camera's sight of the shelf.
        gripper_s: seconds (ROS time) that opening or closing takes.
        timeout_s: longest wait for an arrival, wall time.
    """

    def __init__(
        self, node: Node, frame_id: str, home_m: Points, gripper_s: float, timeout_s: float
    ) -> None:
        self._clock: Clock = node.get_clock()
        self._frame_id = frame_id
        self._home_m = home_m
        self._gripper_s = gripper_s
        self._timeout_s = timeout_s
        self._stopping = threading.Event()
        self._arrived: dict[int, PoseStamped] = {}
        self._changed = threading.Condition()
        self._goals = node.create_publisher(PoseStamped, "~/goal_pose", _QOS)
        self._gripper = node.create_publisher(Bool, "~/close_gripper", _QOS)
        node.create_subscription(PoseStamped, "~/arrived", self._on_arrived, _QOS)
        self.rested_ns = 0
        """ROS time since which the arm has been at rest."""

    @property
    def connected(self) -> bool:
        """Whether an arm listens."""
        return (
            self._goals.get_subscription_count() > 0 and self._gripper.get_subscription_count() > 0
        )

    def stop(self) -> None:
        """End every wait with an ArmError."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()

    def move_to(self, point_m: Points) -> Points:
        """Send the tool to a point of the shelf frame and wait; returns where it came to rest.

        Raises:
            ArmError: it did not arrive in time.
        """
        goal = PoseStamped()
        goal.header.frame_id = self._frame_id
        goal.header.stamp = self._clock.now().to_msg()
        position = goal.pose.position
        position.x, position.y, position.z = (float(value) for value in point_m)
        goal.pose.orientation.w = 1.0  # REP 103: facing the rack, upright
        key = to_ns(goal.header.stamp)
        self._goals.publish(goal)
        with self._changed:
            self._changed.wait_for(
                lambda: key in self._arrived or self._stopping.is_set(), self._timeout_s
            )
            reached = self._arrived.pop(key, None)
        if reached is None:
            place = ", ".join(f"{value:.2f}" for value in point_m)
            raise ArmError(
                f"the arm did not reach ({place}) m in {self._frame_id} within"
                f" {self._timeout_s:g} s; is the point free and in its reach?"
            )
        self.rested_ns = self._clock.now().nanoseconds
        arrived = reached.pose.position
        return np.array([arrived.x, arrived.y, arrived.z])

    def go_home(self) -> None:
        """Leave the camera's view of the shelf.

        Raises:
            ArmError: it did not arrive in time.
        """
        self.move_to(self._home_m)

    def close_gripper(self, close: bool) -> None:
        """Close or open, and wait until that is done.

        Raises:
            ArmError: the planner is ending.
        """
        until_ns = self._clock.now().nanoseconds + int(self._gripper_s * 1e9)
        self._gripper.publish(Bool(data=close))
        patience_s = time.monotonic() + self._timeout_s
        while self._clock.now().nanoseconds < until_ns:
            if self._stopping.wait(_POLL_S) or time.monotonic() > patience_s:
                raise ArmError("the planner ends, or its clock stands still (is /clock published?)")

    def _on_arrived(self, pose: PoseStamped) -> None:
        with self._changed:
            self._arrived[to_ns(pose.header.stamp)] = pose
            self._changed.notify_all()
