"""A node with two cameras, in a namespace."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_msgs.msg import Answer
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from vlm_client import VlmClient, bits, make_image, pattern

FINAL = {Answer.STATUS_FINAL, Answer.STATUS_TRUNCATED}


@pytest.fixture(scope="module")
def node(start_module_process):
    command = [sys.executable, "-m", "edge_atp_ros.vlm_node", "--ros-args", "-r", "__ns:=/cell"]
    for parameter in (
        "autostart:=true",
        "frame_wait:=0.3",
        "cameras:=[left, right]",
        "camera_topics:=[left/image_raw, /outside/right]",
        "max_frame_age:=0.0",
        "sync_tolerance:=0.0",
    ):
        command += ["-p", parameter]
    process = start_module_process(command, name="vlm_node")
    process.wait_for("active: cameras left on /cell/left/image_raw, right on /outside/right")
    return process


@pytest.fixture(scope="module")
def client(node):
    client = VlmClient("/cell/vlm_node", "/cell/left/image_raw")
    client.wait_until_active()
    yield client
    client.close()


@pytest.fixture(scope="module")
def right(client):
    publisher = client.node.create_publisher(Image, "/outside/right", qos_profile_sensor_data)
    client.wait(publisher.get_subscription_count, "right camera")
    return publisher


def test_one_camera_answers_while_the_other_has_sent_nothing(client):
    image = make_image(pattern(), frame_id="left")
    answer = client.ask_about(image, cameras=["left"])
    assert (answer.status in FINAL, answer.header) == (True, image.header)

    silent = client.ask(cameras=["right"])
    assert silent.error_code == Answer.ERROR_NO_FRAME
    assert "right" in silent.error_msg
    both = client.ask()
    assert both.error_code == Answer.ERROR_NO_FRAME
    assert "left" not in both.error_msg.split("within")[0]


def test_two_cameras_are_answered_about_together(client, right):
    left_image = make_image(pattern(seed=1), frame_id="left")
    right_image = make_image(pattern(300, 300, seed=2), frame_id="right")
    client.images.publish(left_image)
    right.publish(right_image)
    client.wait(
        lambda: client.ask(cameras=["right"]).error_code == Answer.ERROR_NONE, "right image"
    )

    for cameras in (["left", "right"], ["right", "left"]):
        answer = client.ask(cameras=cameras)
        assert answer.status in FINAL, answer.error_msg
        assert answer.cameras == cameras
        assert answer.header == right_image.header, "the newest of both"
        masks = client.mask_of(answer).masks
        assert [mask.camera for mask in masks] == cameras
        assert answer.tokens.visual_total == 512
        assert answer.tokens.visual_kept == sum(bits(mask).sum() for mask in masks)
        by_name = dict(zip(cameras, answer.frame_stamps, strict=True))
        assert by_name == {"left": left_image.header.stamp, "right": right_image.header.stamp}


def test_each_camera_reports_its_own_counts(client):
    left = "/cell/vlm_node: camera left"
    right = "/cell/vlm_node: camera right"
    assert int(client.diagnostic(left, "frames_received")) == 2
    assert int(client.diagnostic(right, "frames_received")) == 1
    assert client.wait(
        lambda: client.diagnostic(right, "message") == "no images", "silence is noticed"
    )
