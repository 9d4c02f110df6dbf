"""`edge-atp view --live` beside a scripted VLM node and a camera: what it saves, read back."""

from __future__ import annotations

import array
import signal
import sys

import cv2
import numpy as np
import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_msgs.msg import Query
from rclpy.qos import qos_profile_sensor_data
from scripted_vlm import ScriptedVlm
from sensor_msgs.msg import CompressedImage
from waiting import wait_until

QUESTION = "what is the gripper holding?"


@pytest.fixture
def vlm():
    vlm = ScriptedVlm()
    vlm.texts = {QUESTION: "red box"}
    yield vlm
    vlm.close()


def rows_of(chunk, path) -> dict[str, int]:
    rows: dict[str, int] = {}
    for part in chunk.RrdReader(path).stream():
        if not part.is_static:
            rows[part.entity_path] = rows.get(part.entity_path, 0) + part.num_rows
    return rows


def test_a_running_node_is_shown_until_it_is_interrupted(vlm, start_process, tmp_path):
    chunk = pytest.importorskip("rerun.chunk", reason="needs rerun 0.41, extra 'view'")
    saved = tmp_path / "live.rrd"
    node = vlm.node
    images = node.create_publisher(
        CompressedImage, "/camera/image_raw/compressed", qos_profile_sensor_data
    )
    # The planner's topic: the viewer listens to it for the questions' texts.
    queries = node.create_publisher(Query, "/vlm_node/query", 10)
    command = [sys.executable, "-m", "edge_atp.cli", "view", "--live", "--save", str(saved)]
    process = start_process(command)
    wait_until(lambda: images.get_subscription_count() and queries.get_subscription_count() > 1)
    wait_until(lambda: node.count_subscribers("/vlm_node/answer"))

    jpeg = cv2.imencode(".jpg", np.full((480, 640, 3), 90, np.uint8))[1].tobytes()
    image = CompressedImage(format="jpeg", data=array.array("B", jpeg))
    numbers = iter(range(1000))

    def shown() -> bool:
        image.header.stamp = node.get_clock().now().to_msg()
        images.publish(image)
        queries.publish(Query(query_id=f"q{next(numbers)}", text=QUESTION))
        return saved.is_file() and saved.stat().st_size > 60_000

    wait_until(shown)
    process.signal_group(signal.SIGINT)

    assert process.wait() == 0
    assert "Traceback" not in process.output()
    rows = rows_of(chunk, saved)
    assert rows["/camera/camera"] >= 1
    assert rows["/answers"] >= 1
    assert rows["/camera/camera/kept"] == rows["/answers"]
