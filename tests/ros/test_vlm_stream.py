"""The VLM node over time: bursts, 30 Hz, drops, freshness, deadlines, its other topics."""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from builtin_interfaces.msg import Duration
from edge_atp_msgs.msg import Answer, ModelInfo, PruneConfig
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image
from vlm_client import (
    QUESTION,
    VlmClient,
    assert_answers,
    bits,
    make_image,
    pattern,
    start_vlm_node,
)

RATIO = PruneConfig.POLICY_KEEP_RATIO


@pytest.fixture(scope="module")
def node(start_module_process):
    return start_vlm_node(start_module_process)


@pytest.fixture(scope="module")
def client(node):
    client = VlmClient()
    client.wait_until_active()
    yield client
    client.close()


def test_each_question_of_a_burst_gets_exactly_one_final_answer(client):
    client.images.publish(make_image(pattern()))
    client.ask()
    ids = [client.send() for _ in range(200)]
    for query_id in ids:
        client.answer_to(query_id)

    time.sleep(0.3)  # for a second answer that must not come
    finals = [answer for answer in client.answers if answer.query_id in set(ids)]
    assert sorted(answer.query_id for answer in finals) == sorted(ids)
    codes = {answer.error_code for answer in finals}
    assert codes == {Answer.ERROR_NONE, Answer.ERROR_REJECTED}
    rejected = next(a for a in finals if a.error_code == Answer.ERROR_REJECTED)
    assert "queue is full" in rejected.error_msg


def test_all_of_100_raw_images_at_30_hz_arrive_while_questions_are_answered(client, node):
    """In one of three streams: no transport gets images through to a node that is starved."""
    camera = "/vlm_node: camera camera"
    pixels = pattern()
    arrived = []
    while len(arrived) < 3 and 100 not in arrived:
        before = int(client.diagnostic(camera, "frames_received"))
        asked = []
        due = time.monotonic()
        for number in range(100):
            client.images.publish(make_image(pixels))
            if number % 5 == 0:
                asked.append(client.send())
            due += 1 / 30
            time.sleep(max(0.0, due - time.monotonic()))
        answers = [client.answer_to(query_id) for query_id in asked]
        time.sleep(0.5)
        arrived.append(int(client.diagnostic(camera, "frames_received")) - before)
    assert 100 in arrived, arrived
    assert all(answer.error_code == Answer.ERROR_NONE for answer in answers)
    stamps = [answer.header.stamp.sec for answer in answers]
    assert stamps == sorted(stamps), "a later question is answered about a later frame"


def send_images(client: VlmClient, count: int) -> None:
    """Publish images, and wait until the node has them all."""
    camera = "/vlm_node: camera camera"
    before = int(client.diagnostic(camera, "frames_received"))
    for _ in range(count):
        client.images.publish(make_image(pattern()))
        time.sleep(0.05)
    client.wait(
        lambda: int(client.diagnostic(camera, "frames_received")) == before + count, "all arrive"
    )


def test_dropped_frames_are_counted(client):
    client.ask_about(make_image(pattern()), query_id="dropped-1")
    send_images(client, 4)
    answer = client.ask(query_id="dropped-2")
    assert answer.frames_dropped == 0, "none arrived after this question"

    client.ask(query_id="dropped-3")
    send_images(client, 4)
    client.send(query_id="dropped-3")
    again = client.wait(
        lambda: [a for a in client.answers if a.query_id == "dropped-3"][1:], "second answer"
    )[0]
    assert again.frames_dropped == 3, "four arrived since the last answer, one was used"
    assert again.sequence == 1


def test_a_text_question_gets_an_id_and_an_answer(client):
    image = make_image(pattern())
    client.images.publish(image)
    known = len(client.answers)
    client.send_text(QUESTION)
    client.wait(lambda: len(client.answers) > known, "answer to a text")

    answer = client.answers[known]
    assert answer.query_id
    assert_answers(client, answer, image)


def test_an_old_frame_is_stale_only_for_a_question_that_minds(client):
    now = client.node.get_clock().now()
    fresh, old = make_image(pattern()), make_image(pattern())
    fresh.header.stamp = now.to_msg()
    old.header.stamp.sec = now.to_msg().sec - 60
    ten_seconds = Duration(sec=10)
    assert client.ask_about(fresh, max_frame_age=ten_seconds).error_code == Answer.ERROR_NONE
    stale = client.ask_about(old, max_frame_age=ten_seconds)
    assert (stale.status, stale.error_code) == (Answer.STATUS_ERROR, Answer.ERROR_STALE_FRAME)
    assert stale.header == old.header
    answered = client.ask()
    assert answered.error_code == Answer.ERROR_NONE
    assert answered.latency.frame_age == pytest.approx(60, abs=10)


def test_a_deadline_that_has_passed_is_answered_expired(client):
    client.images.publish(make_image(pattern()))
    answer = client.ask(deadline=Duration(nanosec=1))

    assert answer.status == Answer.STATUS_EXPIRED
    assert answer.error_code == Answer.ERROR_TIMEOUT
    assert "deadline" in answer.error_msg
    assert client.ask(deadline=Duration(sec=20)).error_code == Answer.ERROR_NONE


def test_pictures_show_the_mask_in_the_cameras_pixels(client):
    mask_images = client.listen(Image, "/vlm_node/mask_image")
    overlays = client.listen(Image, "/vlm_node/overlay")
    image = make_image(pattern(300, 500))
    answer = client.ask_about(image, prune={"policy": RATIO, "keep_ratio": 0.4})
    (mask,) = client.mask_of(answer).masks
    # Those of an earlier test's question may arrive late.
    picture, overlay = (
        client.wait(lambda found=found: [p for p in found if p.header == image.header], name)[0]
        for found, name in ((mask_images, "mask image"), (overlays, "overlay"))
    )

    assert picture.encoding == "mono8"
    pixels = np.array(picture.data, np.uint8).reshape(picture.height, picture.width)
    assert pixels.shape == (300, 500)
    roi = mask.roi
    rows = (np.arange(roi.height) * mask.grid_rows) // roi.height
    cols = (np.arange(roi.width) * mask.grid_cols) // roi.width
    expected = np.zeros((300, 500), np.uint8)
    inside = np.s_[
        roi.y_offset : roi.y_offset + roi.height, roi.x_offset : roi.x_offset + roi.width
    ]
    expected[inside] = bits(mask)[np.ix_(rows, cols)] * 255
    np.testing.assert_array_equal(pixels, expected)
    assert overlay.encoding == "rgb8"
    assert overlay.width == 500
    assert len(overlay.data) == overlay.step * overlay.height


def test_partial_answers_grow_into_the_final_one(client):
    partials = client.listen(Answer, "/vlm_node/answer_partial")
    image = make_image(pattern())
    answer = client.ask_about(image, "describe the scene.")
    client.wait(lambda: [p for p in partials if p.query_id == answer.query_id], "partial answer")
    mine = [partial for partial in partials if partial.query_id == answer.query_id]

    assert {partial.status for partial in mine} == {Answer.STATUS_PARTIAL}
    assert all(partial.header == image.header for partial in mine)
    texts = [partial.text for partial in mine]
    assert texts == sorted(texts, key=len)
    assert answer.text.startswith(texts[-1].rstrip("\ufffd"))


def test_model_info_is_there_for_late_subscribers(client):
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    received = client.listen(ModelInfo, "/vlm_node/model_info", latched)
    info = client.wait(lambda: received, "model info")[0]

    assert info.model_id == "warehouse_tiny"
    assert len(info.manifest_sha256) == 64
    assert (info.grid_rows, info.grid_cols) == (16, 16)
    assert {"atp", "cls_topk", "none", "random"} <= set(info.available_methods)
    assert info.default_prune.method in info.available_methods
    assert 0 < info.default_prune.keep_ratio <= 1
    assert info.cameras == ["camera"]
