"""What cameras do wrong: the node lives on, never answers about a stale frame, and is right again.

After every test each answer so far is checked: it is about a frame that was really published, and
has its mask.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from builtin_interfaces.msg import Duration, Time
from edge_atp_msgs.msg import Answer, Query
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image
from std_msgs.msg import String
from vlm_client import (
    QUESTION,
    VlmClient,
    assert_answers,
    make_compressed,
    make_image,
    pattern,
    start_vlm_node,
)

from edge_atp import types
from edge_atp.pipeline import Pipeline

CAMERA = "/vlm_node: camera camera"
COMPLETE = {Answer.STATUS_FINAL, Answer.STATUS_TRUNCATED}
LIMIT_S = 1.0
LIMIT = Duration(sec=1)
PATIENT = Duration(sec=20)  # what must be fresh is so on a machine that is far too busy, too
HOUR_S = 3600.0


class Camera:
    """A camera driver that keeps book of the headers it has published."""

    def __init__(self, client: VlmClient) -> None:
        self.client = client
        self.sent: list[Any] = []

    def now_s(self) -> float:
        return self.client.node.get_clock().now().nanoseconds / 1e9

    def send(self, stamp_s: float | None = None, pixels: np.ndarray | None = None, **how) -> Image:
        """Publish an image, stamped now unless said otherwise."""
        image = make_image(pattern() if pixels is None else pixels, **how)
        seconds = self.now_s() if stamp_s is None else stamp_s
        image.header.stamp = Time(sec=int(seconds), nanosec=int(seconds % 1 * 1e9))
        self.repeat(image)
        return image

    def repeat(self, image: Image) -> None:
        """Publish a message, maybe not for the first time."""
        self.sent.append(image.header)
        self.client.images.publish(image)


@pytest.fixture(scope="module")
def node(start_module_process):
    return start_vlm_node(start_module_process)


@pytest.fixture(scope="module")
def client(node):
    client = VlmClient()
    client.wait_until_active()
    yield client
    client.close()


@pytest.fixture(scope="module")
def truth() -> str:
    """What the core says about the good picture, without any node."""
    pipeline = Pipeline.load()
    answer = pipeline.answer(types.Query(QUESTION), [types.Frame(pattern())])
    pipeline.close()
    return answer.text


@pytest.fixture(scope="module")
def driver(client) -> Camera:
    return Camera(client)


@pytest.fixture
def camera(driver, client, node, truth) -> Iterator[Camera]:
    """The camera; afterwards the node must be alive and right, and must have been truthful."""
    yield driver
    good = driver.send()
    client.wait(partial(is_about, client, good), "an answer about the good picture")
    answer = client.answers[-1]
    assert_answers(client, answer, good)
    assert answer.text == truth
    for answer in client.answers:
        if answer.status in COMPLETE:
            assert answer.header in driver.sent
            assert client.mask_of(answer).header == answer.header
        elif answer.header.stamp.sec:
            assert answer.header in driver.sent
    assert node.is_running()
    assert "Traceback" not in node.output()


def is_about(client: VlmClient, image: Image) -> bool:
    """Whether a question asked now is answered about this image.

    On another topic, a question may overtake the image: ask until it is.
    """
    return client.ask(max_frame_age=PATIENT).header == image.header


def test_a_camera_that_stops_is_reported_and_not_answered_about(camera, client):
    last = camera.send()
    client.wait(partial(is_about, client, last), "an answer about the last image")
    time.sleep(LIMIT_S)
    stale = client.ask(max_frame_age=LIMIT)
    assert (stale.status, stale.error_code) == (Answer.STATUS_ERROR, Answer.ERROR_STALE_FRAME)
    assert stale.header == last.header
    client.wait(lambda: client.diagnostic(CAMERA, "message") == "no images", "silence reported")
    assert float(client.diagnostic(CAMERA, "seconds_since_last")) > 2.0

    camera.send()
    client.wait(lambda: client.diagnostic(CAMERA, "message") == "", "it is back")


def test_a_camera_that_stutters_is_answered_about_whenever_it_is_fresh(camera, client):
    for burst, pause_s in ((5, 0.3), (1, 0.6), (8, 0.0), (2, LIMIT_S)):
        for _ in range(burst):
            newest = camera.send()
        client.wait(partial(is_about, client, newest), "an answer about the newest image")
        time.sleep(pause_s)
    assert client.ask(max_frame_age=LIMIT).error_code == Answer.ERROR_STALE_FRAME


def test_a_camera_that_repeats_its_last_image_grows_stale(camera, client):
    """A frozen driver publishes at full rate; what it shows is as old as its stamp."""
    before = int(client.diagnostic(CAMERA, "frames_received"))
    frozen = camera.send()
    client.wait(partial(is_about, client, frozen), "an answer about the image")
    for _ in range(12):
        camera.repeat(frozen)
        time.sleep(LIMIT_S / 10)
    assert client.ask(max_frame_age=LIMIT).error_code == Answer.ERROR_STALE_FRAME
    assert int(client.diagnostic(CAMERA, "frames_received")) == before + 13


def test_images_that_overtake_each_other_do_not_replace_the_newest(camera, client):
    start_s = camera.now_s()
    pictures = {ms: pattern(seed=ms) for ms in (0, 66, 33, 132, 99)}
    sent = {ms: camera.send(start_s + ms / 1e3, pixels) for ms, pixels in pictures.items()}
    client.wait(lambda: int(client.diagnostic(CAMERA, "frames_late")) == 2, "late ones counted")

    assert_answers(client, client.ask(max_frame_age=PATIENT), sent[132])


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
def test_a_cameras_clock_that_jumps_is_not_believed_and_not_held_against_it(camera, client, jump_s):
    camera.send()
    jumped = camera.send(camera.now_s() + jump_s)
    # Without a limit the newest arrival counts.
    client.wait(lambda: client.ask().header == jumped.header, "an answer about the newest image")
    doubtful = client.ask(max_frame_age=LIMIT)
    assert doubtful.error_code == Answer.ERROR_STALE_FRAME
    assert doubtful.header == jumped.header

    back = camera.send()
    client.wait(partial(is_about, client, back), "an answer about the image in time")


def test_encoding_and_size_may_change_with_every_image(camera, client):
    channels = {"rgb8": 3, "bgra8": 4, "mono8": 1, "mono16": 1, "bgr8": 3, "bayer_rggb8": 1}
    rng = np.random.default_rng(5)
    asked = {}
    for number, encoding in enumerate([*channels] * 3):
        height, width = (int(side) for side in rng.integers(64, 700, 2))
        dtype = np.uint16 if encoding.endswith("16") else np.uint8
        pixels = rng.integers(0, 255, (height, width, channels[encoding])).astype(dtype)
        image = camera.send(pixels=pixels, encoding=encoding)
        asked[client.send(query_id=f"switch-{number}")] = image
        if number % 3 == 0:
            client.answer_to(f"switch-{number}")
    sizes = {(header.stamp.sec, header.stamp.nanosec): None for header in camera.sent}
    for image in asked.values():
        stamp = image.header.stamp
        sizes[stamp.sec, stamp.nanosec] = (image.width, image.height)
    for query_id in asked:
        answer = client.answer_to(query_id)
        assert answer.status in COMPLETE, answer.error_msg
        (mask,) = client.mask_of(answer).masks
        stamp = answer.header.stamp
        assert (mask.image_width, mask.image_height) == sizes[stamp.sec, stamp.nanosec]


def test_damaged_messages_of_every_kind_are_survived(camera, client):
    """Real messages over DDS with bytes flipped, cut off, or lengths made absurd."""
    rng = np.random.default_rng(7)
    good = serialize_message(make_image(pattern(48, 64)))
    packed = serialize_message(make_compressed(b"\xff\xd8\xff\xe0" + bytes(200), "jpeg"))
    asked = []
    for number in range(300):
        publisher, original = (client.images, good) if number % 2 else (client.compressed, packed)
        publisher.publish(damaged(original, rng))
        if number % 7 == 0:
            asked.append(client.send())
            client.answer_to(asked[-1])
    for query_id in asked:
        # The stamp may be among the flipped bytes, so the header proves nothing here.
        client.answers.remove(client.answer_to(query_id))


def damaged(message: bytes, rng: np.random.Generator) -> bytes:
    content = bytearray(message)
    kind = rng.integers(3)
    if kind == 0:
        return bytes(content[: rng.integers(4, len(content))])
    for _ in range(rng.integers(1, 20)):
        # Mostly in the first 80 bytes, where the lengths stand; not in the encapsulation.
        end = 80 if rng.random() < 0.7 else len(content)
        content[rng.integers(4, end)] = rng.integers(256)
    if kind == 1:
        at = int(rng.integers(4, 60)) & ~3
        content[at : at + 4] = b"\xff\xff\xff\x7f"
    return bytes(content)


def test_publishers_that_cannot_match_are_named_and_harm_nobody(camera, client, node):
    """Questions sent best effort cannot reach a reliable subscription; a String is no Image."""
    hasty = client.node.create_publisher(Query, "/vlm_node/query", qos_profile_sensor_data)
    outsider = VlmClient(camera="/elsewhere")  # one DDS participant holds a topic to one type
    wrong = outsider.node.create_publisher(String, "/camera/image_raw", 10)
    demanding = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
    reliable = client.node.create_publisher(Image, "/camera/image_raw", demanding)
    try:
        output = node.wait_for("incompatible QoS")
        assert "~/query" in output
        assert "RELIABILITY" in output
        client.wait(reliable.get_subscription_count, "a reliable camera does match")
        hasty.publish(Query(query_id="lost", text=QUESTION))
        wrong.publish(String(data="not an image"))
        image = make_image(pattern())
        camera.sent.append(image.header)
        reliable.publish(image)
        client.wait(lambda: client.ask().header == image.header, "the reliable camera's image")
        assert not [answer for answer in client.answers if answer.query_id == "lost"]
    finally:
        outsider.close()
        for publisher in (hasty, reliable):
            client.node.destroy_publisher(publisher)
