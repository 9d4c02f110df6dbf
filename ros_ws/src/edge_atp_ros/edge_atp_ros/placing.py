"""Example of a pick-and-place planner: carries out orders with an arm, led by answers alone.

An order (`move the red box to the top shelf`, on ~/order) becomes: look at the floor, find the
item, choose a free slot, pick, look what is in the gripper, look again whether the slot is free,
place, look where the item stands. Goals go out as PoseStamped in the shelf frame. An answer that
is stale, unsure or without ground is not acted upon: the reason goes to ~/refusal, the question
is asked again, and after some tries the order ends as failed. ~/event says what was done.

The orders are carried out in a thread, in plain sequence; the executor only takes messages.
"""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import String

from edge_atp.errors import ConfigError, EdgeAtpError
from edge_atp_ros.arm import ArmClient
from edge_atp_ros.client import ClosedError, NoAnswerError, UnusableAnswerError, VlmClient
from edge_atp_ros.convert import to_ns
from edge_atp_ros.looking import HazardError, Looker, SceneError, Sighting
from edge_atp_ros.orders import Order, parse_order
from edge_atp_ros.placing_parameters import declare_placing
from edge_atp_ros.shelf import CameraModel, Points

NODE_NAME = "pick_and_place"
_QOS = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_POLL_S = 0.05
_RELEASE_M = 0.01  # an item is let go this far above the board, not pressed onto it

Result = TypeVar("Result")


class PickAndPlace(Node):
    """See the module's docstring.

    Raises:
        StartError: a parameter is out of range.
    """

    def __init__(self) -> None:
        super().__init__(NODE_NAME)
        self._settings = settings = declare_placing(self)
        self._orders: queue.Queue[Order] = queue.Queue()
        self._stopping = threading.Event()
        self._info: CameraInfo | None = None
        self._events = self.create_publisher(String, "~/event", _QOS)
        self._refusals = self.create_publisher(String, "~/refusal", _QOS)
        self.create_subscription(String, "~/order", self._on_order, _QOS)
        self.create_subscription(
            CameraInfo, "camera/camera_info", self._on_info, qos_profile_sensor_data
        )
        self._arm = ArmClient(
            self,
            settings.shelf.frame_id,
            settings.home_m,
            settings.gripper_s,
            settings.arm_timeout_s,
        )
        self._vlm = VlmClient(self, "~", guard=settings.guard, timeout_s=settings.answer_timeout_s)
        self._looker = Looker(
            self._vlm,
            settings.shelf,
            self._camera,
            settings.belief,
            lambda: self._arm.rested_ns,
        )
        self._thread = threading.Thread(target=self._work, name="orders", daemon=True)

    def start(self) -> None:
        """Begin with the orders."""
        self._thread.start()

    def destroy_node(self) -> None:
        """End the thread before what it uses is gone."""
        if hasattr(self, "_thread"):
            self._stopping.set()
            self._arm.stop()
            self._vlm.close()
            if self._thread.is_alive():
                self._thread.join()
        super().destroy_node()

    # Messages --------------------------------------------------------------------------------

    def _on_order(self, message: String) -> None:
        try:
            order = parse_order(message.data, self._settings.shelf.shelves)
        except ConfigError as error:
            self._say(f"failed: {message.data}: {error}")
            return
        self._orders.put(order)

    def _on_info(self, info: CameraInfo) -> None:
        self._info = info

    def _camera(self) -> CameraModel:
        info = self._info
        if info is None:
            raise SceneError("no camera_info has come yet; is the camera running?")
        return replace(
            self._settings.camera, focal_px=(info.k[0], info.k[4]), centre_px=(info.k[2], info.k[5])
        )

    # Orders ----------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                order = self._orders.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            try:
                self._say(f"begun: {order}")
                place = self._carry_out(order)
                self._say(f"done: {order} ({place})")
            except EdgeAtpError as error:
                if not self._stopping.is_set():
                    self._say(f"failed: {order}: {error}")
            except Exception:
                self.get_logger().error(traceback.format_exc())
                self._say(f"failed: {order}: an error in the planner, see its log")

    def _carry_out(self, order: Order) -> str:
        looker = self._looker
        self._wait_for(lambda: self._arm.connected and self._info is not None)
        self._wait_for_clear_floor()
        if (held := self._insist(looker.holding)) is not None:
            raise SceneError(f"the gripper already holds a {held}")
        source = self._insist(lambda: looker.find(order.item))
        if source.place.shelf == order.shelf:
            return f"already in {source.place}"
        target = self._insist(lambda: looker.free_slot(order.shelf, source.place))
        height_m = self._pick(order, source)
        self._wait_for_clear_floor()
        try:
            target = self._insist(lambda: looker.require_free(target.place))
        except (UnusableAnswerError, NoAnswerError, SceneError):
            self._place(order, source, height_m)  # no place to go: back to where it came from
            raise
        self._place(order, target, height_m)
        found = self._insist(lambda: looker.find(order.item))
        if found.place != target.place:
            raise SceneError(f"the {order.item} stands in {found.place}, not in {target.place}")
        return str(target.place)

    def _pick(self, order: Order, source: Sighting) -> float:
        """Fetch the item; returns how high above the board the tool was when it gripped."""
        top = source.point_m + _up(self._settings.heights_m[order.item.kind])
        self._say(f"picking: {order.item} from {source.place}")
        reached = self._arm.move_to(top)
        self._arm.close_gripper(True)
        self._arm.go_home()
        held = self._insist(self._looker.holding)
        if held != order.item:
            self._arm.close_gripper(False)
            raise SceneError(f"the gripper holds {held or 'nothing'} instead of the {order.item}")
        return float(reached[2] - source.point_m[2])

    def _place(self, order: Order, target: Sighting, height_m: float) -> None:
        self._say(f"placing: {order.item} in {target.place}")
        self._arm.move_to(target.point_m + _up(height_m + _RELEASE_M))
        self._arm.close_gripper(False)
        self._arm.go_home()

    def _wait_for_clear_floor(self) -> None:
        """Hold until nobody is on the floor.

        Raises:
            HazardError: not within ``hold_time``.
        """
        until_ns = self._vlm.now_ns() + int(self._settings.hold_s * 1e9)
        while True:
            try:
                self._insist(self._looker.require_clear_floor)
                return
            except HazardError as error:
                self._refuse(f"hold: {error}")
                if self._vlm.now_ns() >= until_ns:
                    raise
            self._pause(self._settings.retry_pause_s)

    def _insist(self, look: Callable[[], Result]) -> Result:
        """Look until the answer may be acted upon; each refusal is published with its reason.

        Raises:
            UnusableAnswerError, NoAnswerError: of the last try.
        """
        for attempt in range(1, self._settings.attempts + 1):
            self._wait_for_a_new_frame()
            try:
                return look()
            except (UnusableAnswerError, NoAnswerError) as error:
                self._refuse(str(error))
                if attempt == self._settings.attempts:
                    raise
            self._pause(self._settings.retry_pause_s)
        raise AssertionError("attempts is at least 1")

    def _wait_for_a_new_frame(self) -> None:
        """Of the time after the arm came to rest; not longer than a stale answer would take."""
        patience_ns = self._vlm.now_ns() + int(self._settings.guard.max_age_s * 1e9)
        self._wait_for(
            lambda: (
                self._vlm.now_ns() > patience_ns
                or (self._info is not None and to_ns(self._info.header.stamp) > self._arm.rested_ns)
            )
        )

    def _pause(self, seconds: float) -> None:
        until_ns = self._vlm.now_ns() + int(seconds * 1e9)
        self._wait_for(lambda: self._vlm.now_ns() >= until_ns)

    def _wait_for(self, holds: Callable[[], bool]) -> None:
        while not holds():
            if self._stopping.wait(_POLL_S / 5):
                raise ClosedError("the planner is ending")

    def _refuse(self, reason: str) -> None:
        self.get_logger().warning(f"not acting: {reason}")
        self._refusals.publish(String(data=reason))

    def _say(self, text: str) -> None:
        self.get_logger().info(text)
        self._events.publish(String(data=text))


def _up(height_m: float) -> Points:
    return np.array([0.0, 0.0, height_m])
