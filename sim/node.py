"""The simulated cell as a ROS node: a camera and an arm that do not know they are simulated.

Out: /clock, camera/image_raw (rgb8), camera/camera_info, joint_states, ~/arrived (PoseStamped in
the shelf frame, under the goal's stamp), orders (latched, if ``num_orders`` is set), and, for
judges only, ~/truth (JSON: what stands in each slot, in the gripper, on the floor).
In: ~/goal_pose (PoseStamped in the shelf frame: where the tool goes), ~/close_gripper (Bool),
~/hazard (String: put a person, cone or pallet on the floor; "" clears it).
Service: ~/run_camera (SetBool): false freezes the camera, as a failing one would.

One thread steps, draws and publishes; the executor's callbacks only queue commands. A picture
carries the simulated time of the state it shows.
"""

from __future__ import annotations

import array
import json
import queue
import threading
import time
import traceback
from collections.abc import Callable

import numpy as np
from builtin_interfaces.msg import Time
from edge_atp_ros.convert import to_stamp
from edge_atp_ros.declaring import declare
from edge_atp_ros.process import StartError
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Bool, Header, String
from std_srvs.srv import SetBool

from models.warehouse_tiny.render import RendererUnavailableError, SceneRenderer, import_mujoco
from sim.cell import CellSim
from sim.cell_mjcf import JOINTS
from sim.frames import CAMERA_FRAME, SHELF_FRAME, focal_px, to_shelf, to_world
from sim.orders import cell_scene, possible_orders

NODE_NAME = "sim_cell"
SIZE = (640, 480)
START_S = 1000  # ROS takes time 0 for "no clock yet"
TICK_S = 0.02
_JOINTS_PERIOD_S = 0.1
_LATCHED = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_NEWEST = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class CellNode(Node):
    """See the module's docstring.

    Raises:
        StartError: MuJoCo or its GL library is missing, or a parameter is wrong.
    """

    def __init__(self) -> None:
        super().__init__(NODE_NAME)
        self._seed = declare(self, "seed", 3, "picks the scene", 0, 2**31)
        split = declare(self, "split", "test", "split of the scene generator: its looks")
        hazard = declare(self, "hazard", "", "on the floor at the start; empty: nothing")
        self._rate = declare(self, "rate", 1.0, "speed against the wall clock", 0.01, 100.0)
        self._camera_period_s = 1 / declare(
            self, "camera_rate", 5.0, "pictures per simulated second", 0.1, 50.0
        )
        num_orders = declare(self, "num_orders", 0, "orders published at the start", 0, 12)
        try:
            import_mujoco()
            self._cell = CellSim(cell_scene(split, self._seed, hazard))
        except (RendererUnavailableError, ValueError) as error:
            raise StartError(str(error)) from error
        self._commands: queue.Queue[Callable[[], None]] = queue.Queue()
        self._goal_header: Header | None = None
        self._camera_runs = True
        self._create_topics()
        for order in possible_orders(self._cell.scene(), self._seed, num_orders):
            self._orders.publish(String(data=str(order)))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cell", daemon=True)
        self.finished, self.exit_code = False, 0

    def _create_topics(self) -> None:
        self._clock_publisher = self.create_publisher(Clock, "/clock", 10)
        self._images = self.create_publisher(Image, "camera/image_raw", 2)
        self._infos = self.create_publisher(CameraInfo, "camera/camera_info", 2)
        self._joints = self.create_publisher(JointState, "joint_states", 10)
        self._arrivals = self.create_publisher(PoseStamped, "~/arrived", 10)
        self._orders = self.create_publisher(String, "orders", _LATCHED)
        self._truth = self.create_publisher(String, "~/truth", _NEWEST)
        self.create_subscription(PoseStamped, "~/goal_pose", self._on_goal, 10)
        self.create_subscription(Bool, "~/close_gripper", self._on_gripper, 10)
        self.create_subscription(String, "~/hazard", self._on_hazard, 10)
        self.create_service(SetBool, "~/run_camera", self._on_run_camera)

    def start(self) -> None:
        """Let time run."""
        self._thread.start()

    def destroy_node(self) -> None:
        """Stop the thread, then remove what it publishes on."""
        if hasattr(self, "_thread"):
            self._stopping.set()
            if self._thread.is_alive():
                self._thread.join()
        super().destroy_node()

    # Commands, queued for the cell's thread ---------------------------------------------------

    def _on_goal(self, goal: PoseStamped) -> None:
        self._commands.put(lambda: self._move(goal))

    def _on_gripper(self, close: Bool) -> None:
        def act() -> None:
            if close.data:
                self.get_logger().info(f"gripper closed on {self._cell.close_gripper()}")
            else:
                self._cell.open_gripper()

        self._commands.put(act)

    def _on_hazard(self, hazard: String) -> None:
        self._commands.put(lambda: self._cell.set_hazard(hazard.data or None))

    def _on_run_camera(
        self, request: SetBool.Request, response: SetBool.Response
    ) -> SetBool.Response:
        self._camera_runs = request.data
        response.success = True
        response.message = "the camera runs" if request.data else "the camera stands still"
        return response

    def _move(self, goal: PoseStamped) -> None:
        if goal.header.frame_id != SHELF_FRAME:
            raise ValueError(f"goal_pose is in frame {goal.header.frame_id!r}, not {SHELF_FRAME!r}")
        position = goal.pose.position
        self._cell.move_to(to_world(np.array([position.x, position.y, position.z])))
        self._goal_header = goal.header

    # The cell's thread -------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            renderer = SceneRenderer(*SIZE)  # its GL context belongs to this thread
            try:
                self._loop(renderer)
            finally:
                renderer.close()
        except Exception:
            self.get_logger().error(f"the cell stops\n{traceback.format_exc()}")
            self.exit_code = 1
        self.finished = True

    def _loop(self, renderer: SceneRenderer) -> None:
        camera_ticks = max(1, round(self._camera_period_s / TICK_S))
        joint_ticks = round(_JOINTS_PERIOD_S / TICK_S)
        tick, due_s = 0, time.monotonic()
        while not self._stopping.is_set():
            self._clock_publisher.publish(Clock(clock=self._stamp()))
            self._obey()
            if tick % joint_ticks == 0:
                self._publish_joints()
            if tick % camera_ticks == 0:
                self._publish_picture(renderer)
            self._cell.advance(TICK_S)
            self._report_arrival()
            tick += 1
            due_s = max(due_s + TICK_S / self._rate, time.monotonic() - TICK_S)
            self._stopping.wait(max(0.0, due_s - time.monotonic()))

    def _obey(self) -> None:
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return
            try:
                command()
            except ValueError as error:
                self.get_logger().error(f"command refused: {error}")

    def _report_arrival(self) -> None:
        if self._goal_header is None or not self._cell.arrived:
            return
        pose = PoseStamped(header=self._goal_header)
        position = pose.pose.position
        position.x, position.y, position.z = (float(v) for v in to_shelf(self._cell.tool_m))
        pose.pose.orientation.w = 1.0
        self._arrivals.publish(pose)
        self._goal_header = None

    def _publish_joints(self) -> None:
        state = self._cell.joints()
        message = JointState(header=self._header(""), name=list(JOINTS))
        message.position, message.velocity = list(state.position), list(state.velocity)
        message.effort = list(state.effort)
        self._joints.publish(message)
        scene = self._cell.scene()
        truth = {
            "slots": self._cell.contents(),
            "held": scene.held.name if scene.held else None,
            "hazard": scene.hazard,
        }
        self._truth.publish(String(data=json.dumps(truth)))

    def _publish_picture(self, renderer: SceneRenderer) -> None:
        if not self._camera_runs:
            return
        scene, (width, height) = self._cell.scene(), SIZE
        pixels = renderer.render(scene, width, height, segmentation_scale=0.05).image
        header = self._header(CAMERA_FRAME)
        info = CameraInfo(header=header, width=width, height=height, distortion_model="plumb_bob")
        focal = focal_px(scene.look.camera, height)
        info.d = [0.0] * 5
        info.k = [focal, 0.0, width / 2, 0.0, focal, height / 2, 0.0, 0.0, 1.0]
        info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        info.p = [focal, 0.0, width / 2, 0.0, 0.0, focal, height / 2, 0.0, 0.0, 0.0, 1.0, 0.0]
        image = Image(header=header, width=width, height=height, encoding="rgb8", step=3 * width)
        image.data = array.array("B", pixels.tobytes())
        self._images.publish(image)
        self._infos.publish(info)

    def _header(self, frame_id: str) -> Header:
        return Header(stamp=self._stamp(), frame_id=frame_id)

    def _stamp(self) -> Time:
        return to_stamp(START_S * 10**9 + round(self._cell.time_s * 1e9))
