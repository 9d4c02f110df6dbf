"""The VLM node over time: bursts, 30 Hz, drops, freshness, deadlines, its other topics."""

from __future__ import annotations

import re
import signal
import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from builtin_interfaces.msg import Duration
from edge_atp_msgs.msg import Answer, ModelInfo, PruneConfig
from lifecycle_msgs.msg import Transition
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image
from vlm_client import (
    QUESTION,
    VlmClient,
    assert_answers,
    bits,
    make_image,
    pattern,
)

RATIO = PruneConfig.POLICY_KEEP_RATIO
MOST_STREAMS = 10  # see test_transport


def received(client: VlmClient) -> int:
    return int(client.diagnostic("/vlm_node: camera camera", "frames_received"))


def send_burst(client: VlmClient, node: Any) -> list[str]:
    """Publish far more questions than the queue holds; returns their ids.

    However slow this side is, they reach the node at once: it is held meanwhile.
    """
    node.signal_group(signal.SIGSTOP)
    ids = [client.send() for _ in range(200)]
    node.signal_group(signal.SIGCONT)
    return ids


def num_rejections_logged(node: Any) -> int:
    """Refusals for a full queue that the log tells of, in lines of their own or as held back."""
    lines = [line for line in node.output().splitlines() if "queue is full" in line]
    return len(lines) + sum(int(n) for line in lines for n in re.findall(r" held_back=(\d+)", line))


def test_each_question_of_a_burst_gets_exactly_one_final_answer(client, node):
    client.show(make_image(pattern()))
    client.ask()
    ids = send_burst(client, node)
    for query_id in ids:
        client.answer_to(query_id)

    client.ask()  # answered last: a second answer to any of them would have come before
    finals = [answer for answer in client.answers if answer.query_id in set(ids)]
    assert sorted(answer.query_id for answer in finals) == sorted(ids)
    codes = {answer.error_code for answer in finals}
    assert codes == {Answer.ERROR_NONE, Answer.ERROR_REJECTED}
    rejected = next(a for a in finals if a.error_code == Answer.ERROR_REJECTED)
    assert "queue is full" in rejected.error_msg
    num_rejected = sum(answer.error_code == Answer.ERROR_REJECTED for answer in finals)
    client.wait(lambda: num_rejections_logged(node) == num_rejected, "the log tells of all")


def test_all_of_100_raw_images_at_30_hz_arrive_while_questions_are_answered(client):
    """In one of several streams: no transport gets images through to a node that is starved."""
    pixels = pattern()
    arrived = []
    while len(arrived) < MOST_STREAMS and 100 not in arrived:
        before = received(client)
        asked = []
        due = time.monotonic()
        for number in range(100):
            client.images.publish(make_image(pixels))
            if number % 5 == 0:
                asked.append(client.send())
            due += 1 / 30
            time.sleep(max(0.0, due - time.monotonic()))
        answers = [client.answer_to(query_id) for query_id in asked]
        client.show(make_image(pixels))  # what came before it has arrived, or never will
        arrived.append(received(client) - before - 1)
    assert 100 in arrived, arrived
    assert all(answer.error_code == Answer.ERROR_NONE for answer in answers)
    stamps = [answer.header.stamp.sec for answer in answers]
    assert stamps == sorted(stamps), "a later question is answered about a later frame"


def send_images(client: VlmClient, count: int) -> int:
    """Publish images until at least ``count`` have arrived: best effort may lose some.

    Returns:
        How many of those that arrived no question has used.
    """
    before, rounds = received(client), 0
    while True:
        for _ in range(count - 1):
            client.images.publish(make_image(pattern()))
        client.show(make_image(pattern()))  # the one that is used: the newest
        rounds += 1
        arrived = received(client) - before
        if arrived >= count:
            return arrived - rounds


def test_dropped_frames_are_counted(client):
    client.ask_about(make_image(pattern()), query_id="dropped-1")
    send_images(client, 4)
    answer = client.ask(query_id="dropped-2")
    assert answer.frames_dropped == 0, "none arrived after this question"

    client.ask(query_id="dropped-3")
    dropped = send_images(client, 4)
    client.send(query_id="dropped-3")
    again = client.wait(
        lambda: [a for a in client.answers if a.query_id == "dropped-3"][1:], "second answer"
    )[0]
    assert dropped >= 3
    assert again.frames_dropped == dropped, "of those since the last answer, the last was used"
    assert again.sequence == 1


def test_a_text_question_gets_an_id_and_an_answer(client):
    image = make_image(pattern())
    client.show(image)
    known = {answer.query_id for answer in client.answers}
    client.send_text(QUESTION)
    answer = client.wait(
        lambda: next((a for a in client.answers if a.query_id not in known), None), "answer"
    )

    assert answer.query_id
    assert_answers(client, answer, image)


def test_an_old_frame_is_stale_only_for_a_question_that_minds(client):
    now = client.node.get_clock().now()
    fresh, old = make_image(pattern()), make_image(pattern())
    fresh.header.stamp = now.to_msg()
    old.header.stamp.sec = now.to_msg().sec - 3600
    minutes = Duration(sec=300)
    assert client.ask_about(fresh, max_frame_age=minutes).error_code == Answer.ERROR_NONE
    stale = client.ask_about(old, max_frame_age=minutes)
    assert (stale.status, stale.error_code) == (Answer.STATUS_ERROR, Answer.ERROR_STALE_FRAME)
    assert stale.header == old.header
    answered = client.ask()
    assert answered.error_code == Answer.ERROR_NONE
    assert answered.latency.frame_age == pytest.approx(3600, abs=300)


def test_a_deadline_that_has_passed_is_answered_expired(client):
    client.show(make_image(pattern()))
    answer = client.ask(deadline=Duration(nanosec=1))

    assert answer.status == Answer.STATUS_EXPIRED
    assert answer.error_code == Answer.ERROR_TIMEOUT
    assert "deadline" in answer.error_msg
    assert client.ask(deadline=Duration(sec=100)).error_code == Answer.ERROR_NONE


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


def test_what_the_log_holds_back_of_a_burst_is_written_when_the_node_is_deactivated(client, node):
    """Last in the module: the node does not serve after it."""
    before = num_rejections_logged(node)
    ids = send_burst(client, node)
    client.wait(client.is_heard, "all have arrived: what is refused at once is answered in turn")
    assert client.change_state(Transition.TRANSITION_DEACTIVATE)
    logged = num_rejections_logged(node) - before
    finals = [client.answer_to(query_id) for query_id in ids]
    assert logged == sum("queue is full" in answer.error_msg for answer in finals) > 0
