"""The closed loop: simulated camera and arm, the real VLM node, the pick-and-place planner."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from pathlib import Path

import cv2
import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_ros.runner import Runner
from edge_atp_ros.simulation import SimArguments, simulation
from geometry_msgs.msg import PoseStamped
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool
from vlm_client import VlmClient

SHARE = Path(__file__).resolve().parents[2] / "launch"
LATCHED = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
ORDER = "move the purple box to the middle shelf"  # of seed 3
PATIENCE_S = 300.0  # a machine that runs much else beside


@pytest.fixture(scope="module", autouse=True)
def renderer():
    from models.warehouse_tiny.render import RendererUnavailableError, import_mujoco

    try:
        import_mujoco()
    except RendererUnavailableError as error:
        pytest.skip(str(error))


def test_an_order_is_carried_out_and_judged_by_the_truth(start_process, tmp_path):
    run = [sys.executable, "-m", "sim.run", "--orders", "1", "--rate", "4", "--out", str(tmp_path)]
    process = start_process(run)

    code = process.wait(timeout_s=PATIENCE_S)
    output = process.output()
    assert code == 0, output
    assert f"done: {ORDER} (middle shelf, slot" in output
    assert "1 orders: 1 right, 0 wrong, 0 not done" in output
    sheet = cv2.imread(str(tmp_path / "contact_sheet.png"))
    assert sheet.std() > 20
    (film,) = tmp_path.glob("run.*")
    assert film.stat().st_size > 10_000
    assert "Traceback" not in "".join(log.read_text() for log in (tmp_path / "logs").glob("*.log"))


def test_an_interrupt_ends_every_process(start_process, tmp_path):
    process = start_process([sys.executable, "-m", "sim.run", "--out", str(tmp_path)])
    process.wait_for("begun: ", PATIENCE_S)
    process.signal_group(signal.SIGINT)
    assert process.wait() == 130
    assert "Traceback" not in process.output()


@pytest.fixture
def cell(tmp_path):
    """The three processes, no orders yet, and an outsider that listens."""
    table = simulation(SimArguments(num_orders=0, rate=4.0), SHARE)
    with contextlib.ExitStack() as stack:
        stack.enter_context(Runner(table, tmp_path))
        client = stack.enter_context(VlmClient())
        client.topics = {
            name: client.listen_later(kind, name, qos)
            for name, kind, qos in (
                ("/pick_and_place/event", String, LATCHED),
                ("/pick_and_place/refusal", String, LATCHED),
                ("/sim_cell/goal_pose", PoseStamped, 10),
                ("/sim_cell/truth", String, 10),
                ("/sim_cell/close_gripper", Bool, 10),
                ("/camera/camera_info", CameraInfo, 10),
                ("/camera/image_raw", Image, 10),
                ("/joint_states", JointState, 10),
            )
        }
        client.orders = client.node.create_publisher(String, "/orders", LATCHED)
        client.hazards = client.node.create_publisher(String, "/sim_cell/hazard", LATCHED)
        client.wait(
            lambda: client.topics["/camera/image_raw"] and client.orders.get_subscription_count(),
            "the cell and the planner run",
            PATIENCE_S,
        )
        client.wait(client.queries.get_subscription_count, "the VLM node is active", PATIENCE_S)
        client.wait(client.is_heard, "the VLM node answers", PATIENCE_S)
        end = time.monotonic() + PATIENCE_S
        while not (answer := client.ask("what hazard is on the floor?")).text:
            assert time.monotonic() < end, answer  # no frame has reached the node yet
        assert answer.text == "none"
        yield client


def text_of(cell, topic: str, part: str) -> str:
    """The first message of a topic that contains a text, once there is one."""
    return cell.wait(
        lambda: next((m.data for m in cell.topics[topic] if part in m.data), None),
        f"{topic}: {part}",
        PATIENCE_S,
    )


def seconds_since_a_frame(cell) -> float:
    """By the simulation's clock, which the joint states go on telling."""
    newest = (cell.topics[name][-1].header.stamp for name in ("/joint_states", "/camera/image_raw"))
    now, frame = (stamp.sec + 1e-9 * stamp.nanosec for stamp in newest)
    return now - frame


def hazard(cell) -> str | None:
    """What is on the floor by the simulation's own truth."""
    truth = cell.wait(lambda: cell.topics["/sim_cell/truth"], "the truth", PATIENCE_S)
    return json.loads(truth[-1].data)["hazard"]


def run_camera(cell, run: bool) -> None:
    client = cell.node.create_client(SetBool, "/sim_cell/run_camera")
    cell.wait(client.service_is_ready, "service run_camera is there", PATIENCE_S)

    def response() -> SetBool.Response | None:
        """None if it is lost: the cell has not matched the client yet."""
        future = client.call_async(SetBool.Request(data=run))
        with contextlib.suppress(AssertionError):
            return cell.wait(future.result, "run_camera", timeout_s=5.0)
        return None

    assert cell.wait(response, "run_camera", PATIENCE_S).success
    # The client goes with its node: destroyed here, the spinning thread may be about to wait on it.


def test_the_planner_refuses_stale_frames_holds_for_people_and_goes_on(cell):
    image = cell.topics["/camera/image_raw"][0]
    info = cell.wait(lambda: cell.topics["/camera/camera_info"], "camera_info")[0]
    joints = cell.wait(lambda: cell.topics["/joint_states"], "joint_states")[0]
    assert (image.encoding, image.width, image.height) == ("rgb8", 640, 480)
    assert info.header.frame_id == image.header.frame_id
    assert (info.k[2], info.k[5]) == (320.0, 240.0)
    assert list(joints.name) == ["gantry_x", "gantry_y", "gantry_z", "finger"]

    # A camera that stands still: its frames grow old, and nothing moves.
    run_camera(cell, False)
    cell.wait(lambda: seconds_since_a_frame(cell) > 1.5, "the last frame is too old", PATIENCE_S)
    cell.orders.publish(String(data=ORDER))
    failed = text_of(cell, "/pick_and_place/event", f"failed: {ORDER}")
    reason = text_of(cell, "/pick_and_place/refusal", "old")
    assert "s old; at most 1 s" in reason or "s old, more than 1 s" in reason
    assert "s old" in failed
    assert cell.topics["/sim_cell/goal_pose"] == []

    # The camera is back, and somebody stands on the floor.
    cell.hazards.publish(String(data="person"))
    cell.wait(lambda: hazard(cell) == "person", "somebody stands there", PATIENCE_S)
    run_camera(cell, True)
    cell.orders.publish(String(data=ORDER))
    text_of(cell, "/pick_and_place/refusal", "hold: person on the floor")
    assert cell.topics["/sim_cell/goal_pose"] == []

    # The floor is clear again.
    cell.hazards.publish(String(data=""))
    goal = cell.wait(lambda: cell.topics["/sim_cell/goal_pose"], "a goal", PATIENCE_S)[0]
    assert text_of(cell, "/pick_and_place/event", "picking: purple box from bottom shelf, slot 3")
    assert goal.header.frame_id == "shelf"
    position = goal.pose.position
    assert position.x == pytest.approx(0.38)
    assert position.y == pytest.approx(-0.5, abs=0.1)  # third of four slots, from the left
    assert position.z == pytest.approx(1.2 + 0.62)
    cell.wait(lambda: cell.topics["/sim_cell/close_gripper"], "the gripper closes", PATIENCE_S)
    text_of(cell, "/pick_and_place/event", "placing: purple box in middle shelf")
