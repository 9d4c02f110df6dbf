"""A node with two cameras, in a namespace."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_msgs.msg import Answer, Query
from edge_atp_msgs.srv import RemoveQuery, SetQuery
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
    with VlmClient("/cell/vlm_node", "/cell/left/image_raw") as client:
        client.wait_until_active()
        yield client


@pytest.fixture(scope="module")
def show_left(client):
    return lambda image: client.show(image, cameras=["left"])


@pytest.fixture(scope="module")
def show_right(client):
    publisher = client.node.create_publisher(Image, "/outside/right", qos_profile_sensor_data)
    client.wait(publisher.get_subscription_count, "right camera")
    return lambda image: client.show(image, publisher, cameras=["right"])


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


def test_two_cameras_are_answered_about_together(client, show_left, show_right):
    left_image = make_image(pattern(seed=1), frame_id="left")
    right_image = make_image(pattern(300, 300, seed=2), frame_id="right")
    show_left(left_image)
    show_right(right_image)

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


def test_each_camera_reports_its_own_counts(client, show_left, show_right):
    left = "/cell/vlm_node: camera left"
    right = "/cell/vlm_node: camera right"

    def received() -> tuple[int, int]:
        return tuple(int(client.diagnostic(name, "frames_received")) for name in (left, right))

    before = received()
    lefts = [show_left(make_image(pattern(), frame_id="left")) for _ in range(2)]
    between = received()
    sent = show_right(make_image(pattern(), frame_id="right"))
    after = received()
    # What was lost was sent again.
    assert 2 <= between[0] - before[0] <= sum(lefts)
    assert between[1] == before[1]
    assert after[0] == between[0]
    assert 1 <= after[1] - between[1] <= sent
    assert client.wait(
        lambda: client.diagnostic(right, "message") == "no images", "silence is noticed"
    )


@pytest.fixture
def synchronised(client):
    assert client.set_parameter("sync_tolerance", 0.01).successful
    yield
    assert client.set_parameter("sync_tolerance", 0.0).successful


def taken_at(milliseconds: int, frame_id: str, seed: int = 0) -> Image:
    image = make_image(pattern(120, 160, seed=seed), frame_id=frame_id)
    image.header.stamp.sec = 9000 + milliseconds // 1000
    image.header.stamp.nanosec = milliseconds % 1000 * 1_000_000
    return image


def test_images_used_together_were_taken_together(client, show_left, show_right, synchronised):
    lefts = [taken_at(t, "left", t) for t in (0, 100, 200)]
    rights = [taken_at(t, "right", t) for t in (4, 104)]  # the third is still on the way
    for image in lefts:
        show_left(image)
    for image in rights:
        show_right(image)
    answer = client.ask()
    assert answer.status in FINAL, answer.error_msg
    assert list(answer.frame_stamps) == [lefts[1].header.stamp, rights[1].header.stamp]
    assert answer.header == rights[1].header, "the newest of both"
    assert client.ask(cameras=["left"]).header == lefts[2].header, "alone, the newest counts"


def test_cameras_whose_clocks_disagree_are_told_so(client, show_left, show_right, synchronised):
    show_left(taken_at(20_000, "left"))
    show_right(taken_at(50_000, "right"))
    answer = client.ask()
    assert (answer.status, answer.error_code) == (Answer.STATUS_ERROR, Answer.ERROR_NO_FRAME)
    assert "sync_tolerance" in answer.error_msg


def test_a_standing_question_about_both_cameras_waits_for_each_pair(
    client, show_left, show_right, synchronised
):
    query = Query(query_id="pairs", text="what now?", mode=Query.MODE_STANDING)
    assert client.call(SetQuery, "set_query", SetQuery.Request(query=query)).success

    def answers() -> list[Answer]:
        return [a for a in client.answers if a.query_id == "pairs"]

    for number in range(1, 4):
        left_image = taken_at(60_000 + 100 * number, "left", number)
        right_image = taken_at(60_002 + 100 * number, "right", number)
        show_left(left_image)
        show_right(right_image)
        client.wait(lambda number=number: len(answers()) == number, f"pair {number}")
        answer = answers()[-1]
        assert answer.status in FINAL, answer.error_msg
        assert list(answer.frame_stamps) == [left_image.header.stamp, right_image.header.stamp]
    assert [a.sequence for a in answers()] == [0, 1, 2]
    request = RemoveQuery.Request(query_id="pairs")
    assert client.call(RemoveQuery, "remove_query", request).success


def test_a_region_of_interest_bounds_the_mask_in_the_images_own_pixels(client):
    image = make_image(pattern(300, 400), frame_id="left")
    whole = client.mask_of(client.ask_about(image, cameras=["left"])).masks[0]
    assert client.set_parameter("cameras.left.roi", [200, 100, 160, 120]).successful
    try:
        answer = client.ask(cameras=["left"])
        part = client.mask_of(answer).masks[0]
        assert (part.image_width, part.image_height) == (400, 300)
        roi = part.roi
        assert 200 <= roi.x_offset <= roi.x_offset + roi.width <= 360
        assert 100 <= roi.y_offset <= roi.y_offset + roi.height <= 220
        assert part.kept != whole.kept
        small = make_image(pattern(64, 64), frame_id="left")
        outside = client.ask_about(small, cameras=["left"])
        assert outside.error_code == Answer.ERROR_UNSUPPORTED_ENCODING
        assert "cameras.left.roi is [200, 100, 160, 120]" in outside.error_msg
    finally:
        assert client.set_parameter("cameras.left.roi", [0, 0, 0, 0]).successful
    again = client.mask_of(client.ask_about(image, cameras=["left"])).masks[0]
    assert again.roi == whole.roi
    assert again.kept == whole.kept
