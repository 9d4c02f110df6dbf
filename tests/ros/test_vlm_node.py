"""The VLM node as its clients see it: one process, real DDS, the default model."""

from __future__ import annotations

import sys
import time

import cv2
import numpy as np
import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from builtin_interfaces.msg import Duration
from edge_atp_msgs.msg import Answer, ModelInfo, PruneConfig
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image
from vlm_client import QUESTION, VlmClient, bits, make_compressed, make_image, pattern

RATIO = PruneConfig.POLICY_KEEP_RATIO
OFF = {"policy": PruneConfig.POLICY_OFF}


@pytest.fixture(scope="module")
def node(start_module_process):
    command = [sys.executable, "-m", "edge_atp_ros.vlm_node", "--ros-args"]
    command += ["-p", "autostart:=true", "-p", "frame_wait:=0.3"]
    process = start_module_process(command, name="vlm_node")
    process.wait_for("active: cameras")
    return process


@pytest.fixture(scope="module")
def client(node):
    client = VlmClient()
    client.wait_until_active()
    yield client
    client.close()


def assert_answers(client: VlmClient, answer: Answer, image) -> None:
    """What every complete answer must satisfy."""
    assert answer.status in (Answer.STATUS_FINAL, Answer.STATUS_TRUNCATED), answer.error_msg
    assert answer.error_code == Answer.ERROR_NONE
    assert answer.header == image.header
    assert list(answer.frame_stamps) == [image.header.stamp]
    assert answer.cameras == ["camera"]
    mask_array = client.mask_of(answer)
    assert mask_array.header == image.header
    (mask,) = mask_array.masks
    assert answer.tokens.visual_total == mask.grid_rows * mask.grid_cols
    assert answer.tokens.visual_kept == bits(mask).sum()
    latency = answer.latency
    stages = (
        latency.queue_wait
        + latency.preprocess
        + latency.vision_encode
        + latency.prune
        + latency.prefill
        + latency.decode
    )
    assert stages == pytest.approx(latency.total, rel=0.05)
    assert 0 < latency.first_token <= latency.total


def yuv422(rgb: np.ndarray, order: str) -> np.ndarray:
    """(H, W, 2) uint8 of an RGB image in ITU-R BT.601 limited range, as cameras send it."""
    yuv = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420)
    height, width = rgb.shape[:2]
    luma = yuv[:height]
    chroma = yuv[height:].reshape(2, height // 2, width // 2).repeat(2, axis=1)
    packed = np.empty((height, width, 2), np.uint8)
    packed[..., 1 if order == "uyvy" else 0] = luma
    packed[:, 0::2, 0 if order == "uyvy" else 1] = chroma[0]
    packed[:, 1::2, 0 if order == "uyvy" else 1] = chroma[1]
    return packed


def bayer_rggb(rgb: np.ndarray) -> np.ndarray:
    mosaic = rgb[..., 1].copy()
    mosaic[0::2, 0::2] = rgb[0::2, 0::2, 0]
    mosaic[1::2, 1::2] = rgb[1::2, 1::2, 2]
    return mosaic


ENCODERS = {
    "rgb8": lambda rgb: rgb,
    "bgr8": lambda rgb: rgb[..., ::-1],
    "mono8": lambda rgb: cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY),
    "rgba8": lambda rgb: np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)]),
    "bgra8": lambda rgb: np.dstack([rgb[..., ::-1], np.full(rgb.shape[:2], 255, np.uint8)]),
    "bayer_rggb8": bayer_rggb,
    "uyvy": lambda rgb: yuv422(rgb, "uyvy"),
    "yuv422": lambda rgb: yuv422(rgb, "uyvy"),
    "yuv422_yuy2": lambda rgb: yuv422(rgb, "yuyv"),
    "mono16": lambda rgb: cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.uint16) * 257,
}


def test_a_question_before_the_first_image_is_answered_no_frame(client):
    answer = client.ask()

    assert (answer.status, answer.error_code) == (Answer.STATUS_ERROR, Answer.ERROR_NO_FRAME)
    assert "camera" in answer.error_msg
    assert answer.header.stamp.sec == 0


@pytest.mark.parametrize("encoding", sorted(ENCODERS))
def test_every_encoding_is_answered_about(client, encoding):
    image = make_image(ENCODERS[encoding](pattern()), encoding)
    assert_answers(client, client.ask_about(image), image)


def test_encodings_of_one_picture_keep_the_same_patches(client):
    """The conversions agree: colour order and layout are read as they were written."""
    kept = {}
    for encoding in ("rgb8", "bgr8", "rgba8", "bgra8", "bayer_rggb8", "uyvy", "yuv422_yuy2"):
        answer = client.ask_about(make_image(ENCODERS[encoding](pattern()), encoding))
        kept[encoding] = bits(client.mask_of(answer).masks[0])

    for exact in ("bgr8", "rgba8", "bgra8"):
        np.testing.assert_array_equal(kept[exact], kept["rgb8"], err_msg=exact)
    for lossy in ("bayer_rggb8", "uyvy", "yuv422_yuy2"):
        assert (kept[lossy] == kept["rgb8"]).mean() > 0.8, lossy


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_compressed_images_are_answered_about(client, kind):
    done, data = cv2.imencode(f".{kind}", pattern()[..., ::-1])
    assert done
    image = make_compressed(data.tobytes(), kind)
    assert_answers(client, client.ask_about(image), image)


@pytest.mark.parametrize(
    ("height", "width"), [(64, 64), (63, 401), (400, 63), (1080, 1920), (2160, 3840)]
)
def test_every_size_is_answered_about(client, height, width):
    image = make_image(pattern(height, width))
    answer = client.ask_about(image)
    assert_answers(client, answer, image)
    (mask,) = client.mask_of(answer).masks
    roi = mask.roi
    assert (mask.image_width, mask.image_height) == (width, height)
    assert roi.x_offset + roi.width <= width
    assert roi.y_offset + roi.height <= height
    assert min(roi.width, roi.height) > 0


def test_padding_at_the_end_of_rows_is_skipped(client):
    plain = client.ask_about(make_image(pattern()))
    padded = np.zeros((480, 640 * 3 + 64), np.uint8)
    padded[:, : 640 * 3] = pattern().reshape(480, -1)
    image = make_image(padded, "rgb8")
    image.width = 640
    answer = client.ask_about(image)

    assert answer.text == plain.text
    assert client.mask_of(answer).masks[0].kept == client.mask_of(plain).masks[0].kept


@pytest.mark.parametrize(
    ("prune", "kept"),
    [
        ({"policy": RATIO, "keep_ratio": 1.0}, 256),
        ({"policy": RATIO, "keep_ratio": 0.5}, 128),
        ({"policy": RATIO, "keep_ratio": 0.3}, 77),
        ({"policy": RATIO, "keep_ratio": 0.001}, 1),
        ({"policy": PruneConfig.POLICY_TOKEN_BUDGET, "max_visual_tokens": 10}, 10),
        ({"policy": PruneConfig.POLICY_TOKEN_BUDGET, "max_visual_tokens": 9999}, 256),
        (OFF, 256),
    ],
)
def test_the_policy_decides_how_many_tokens_are_kept(client, prune, kept):
    image = make_image(pattern())
    answer = client.ask_about(image, prune=prune)
    assert_answers(client, answer, image)
    assert answer.tokens.visual_kept == kept


@pytest.mark.parametrize("method", ["atp", "cls_topk", "random"])
def test_keeping_everything_gives_the_text_of_no_pruning(client, method):
    client.images.publish(make_image(pattern()))
    dense = client.ask(prune=OFF)
    full = client.ask(prune={"policy": RATIO, "keep_ratio": 1.0, "method": method})

    assert dense.prune_method == "none"
    assert full.prune_method == method
    assert full.text == dense.text


def test_alpha_zero_ignores_the_question(client):
    client.images.publish(make_image(pattern()))
    masks = {}
    for alpha in (0.0, 1.0):
        for text in (QUESTION, "where is the red drum?"):
            answer = client.ask(text, prune={"policy": RATIO, "keep_ratio": 0.3, "alpha": alpha})
            masks[alpha, text] = client.mask_of(answer).masks[0]

    assert masks[0.0, QUESTION].kept == masks[0.0, "where is the red drum?"].kept
    assert masks[0.0, QUESTION].scores == masks[0.0, "where is the red drum?"].scores
    assert masks[1.0, QUESTION].scores != masks[1.0, "where is the red drum?"].scores
    assert masks[1.0, QUESTION].scores != masks[0.0, QUESTION].scores


def test_the_same_frame_and_question_give_the_same_answer_and_mask(client):
    client.images.publish(make_image(pattern(seed=3)))
    first, second = client.ask(), client.ask()

    assert (first.text, first.confidence) == (second.text, second.confidence)
    assert client.mask_of(first).masks == client.mask_of(second).masks


BAD_QUESTIONS = {
    "keep_ratio 0": ({"prune": {"policy": RATIO, "keep_ratio": 0.0}}, "prune.keep_ratio is 0"),
    "keep_ratio nan": ({"prune": {"policy": RATIO, "keep_ratio": float("nan")}}, "nan"),
    "keep_ratio -1": ({"prune": {"policy": RATIO, "keep_ratio": -1.0}}, "prune.keep_ratio is -1"),
    "keep_ratio 2": ({"prune": {"policy": RATIO, "keep_ratio": 2.0}}, "prune.keep_ratio is 2"),
    "alpha nan": ({"prune": {"policy": RATIO, "alpha": float("nan")}}, "prune.alpha"),
    "alpha 3": ({"prune": {"policy": RATIO, "alpha": 3.0}}, "prune.alpha is 3"),
    "policy 9": ({"prune": {"policy": 9}}, "prune.policy is 9"),
    "method": ({"prune": {"policy": RATIO, "method": "telepathy"}}, "telepathy"),
    "no tokens": ({"prune": {"policy": PruneConfig.POLICY_TOKEN_BUDGET}}, "max_visual_tokens"),
    "100 kB": ({"text": "why " * 25_000}, "max_prompt_chars"),
    "empty": ({"text": "   "}, "text is empty"),
    "camera": ({"cameras": ["periscope"]}, "this node has camera"),
    "same camera twice": ({"cameras": ["camera", "camera"]}, "twice"),
    "standing": ({"mode": 1}, "MODE_STANDING"),
    "mode": ({"mode": 7}, "mode is 7"),
    "conversation": ({"conversation_id": "c1"}, "conversation_id"),
    "choices": ({"choices": ["yes", "no"]}, "choices"),
    "max_new_tokens": ({"max_new_tokens": 100_000}, "max_new_tokens is 100000"),
}


@pytest.mark.parametrize("name", sorted(BAD_QUESTIONS))
def test_a_bad_question_is_answered_with_the_reason(client, name):
    fields, reason = BAD_QUESTIONS[name]
    answer = client.ask(**fields)

    assert answer.status == Answer.STATUS_ERROR
    assert answer.error_code == Answer.ERROR_INVALID_QUERY
    assert reason in answer.error_msg
    assert answer.text == ""


def bad_images() -> dict[str, tuple]:
    def image(**changes):
        message = make_image(pattern())
        for name, value in changes.items():
            setattr(message, name, value)
        return message

    truncated = image()
    truncated.data = truncated.data[:-1000]
    return {
        "unknown encoding": (image(encoding="jxl_12bit"), "jxl_12bit"),
        "depth": (image(encoding="32FC1"), "32FC1"),
        "truncated": (truncated, "truncated"),
        "step too small": (image(step=17), "step is 17"),
        "height too large": (image(height=481), "481"),
        "empty": (Image(encoding="rgb8", header=image().header), "empty"),
        "odd yuv width": (make_image(np.zeros((4, 5, 2), np.uint8), "uyvy"), "pairs"),
        "damaged jpeg": (make_compressed(b"\xff\xd8\xff\xe0 not a picture", "jpeg"), "truncated"),
        "no picture": (make_compressed(b"not a picture", "jpeg"), "neither JPEG nor PNG"),
        "no bytes": (make_compressed(b"", "png"), "empty"),
    }


@pytest.mark.parametrize("name", sorted(bad_images()))
def test_a_bad_image_is_answered_with_the_reason_and_the_node_lives_on(client, name):
    image, reason = bad_images()[name]
    answer = client.ask_about(image)

    assert answer.status == Answer.STATUS_ERROR
    assert answer.error_code == Answer.ERROR_UNSUPPORTED_ENCODING
    assert reason in answer.error_msg
    assert answer.header == image.header
    good = make_image(pattern())
    assert_answers(client, client.ask_about(good), good)


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
    camera = "/vlm_node: camera camera"
    before = int(client.diagnostic(camera, "frames_received"))
    pixels = pattern()
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
    assert int(client.diagnostic(camera, "frames_received")) - before == 100
    assert all(answer.error_code == Answer.ERROR_NONE for answer in answers)
    stamps = [answer.header.stamp.sec for answer in answers]
    assert stamps == sorted(stamps), "a later question is answered about a later frame"


def test_dropped_frames_are_counted(client):
    client.ask_about(make_image(pattern()), query_id="dropped-1")
    for _ in range(4):
        client.images.publish(make_image(pattern()))
        time.sleep(0.05)
    answer = client.ask(query_id="dropped-2")
    assert answer.frames_dropped == 0, "none arrived after this question"

    client.ask(query_id="dropped-3")
    for _ in range(4):
        client.images.publish(make_image(pattern()))
        time.sleep(0.05)
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
    picture = client.wait(lambda: mask_images, "mask image")[0]
    overlay = client.wait(lambda: overlays, "overlay")[0]

    assert (picture.encoding, picture.header) == ("mono8", image.header)
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
    assert (overlay.encoding, overlay.header) == ("rgb8", image.header)
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


def test_keep_ratio_changes_while_running_and_bad_values_are_refused(client):
    client.images.publish(make_image(pattern()))
    default = client.ask().tokens.visual_kept
    assert client.set_parameter("keep_ratio", 0.25).successful
    try:
        assert client.ask().tokens.visual_kept == 64
        for value in (2.0, 0.0, -0.5, float("nan")):
            result = client.set_parameter("keep_ratio", value)
            assert not result.successful
            assert "keep_ratio" in result.reason
        assert client.ask().tokens.visual_kept == 64, "the old value stays"
    finally:
        assert client.set_parameter("keep_ratio", -1.0).successful
    assert client.ask().tokens.visual_kept == default


@pytest.mark.parametrize(("name", "value"), [("engine", "trt"), ("model", "other")])
def test_what_is_loaded_is_read_only(client, name, value):
    result = client.set_parameter(name, value)
    assert not result.successful
    assert "read-only" in result.reason


def test_an_unknown_method_is_refused_as_a_parameter(client):
    result = client.set_parameter("method", "telepathy")
    assert not result.successful
    assert "telepathy" in result.reason


def test_random_bytes_on_any_input_leave_the_node_alive(client, node):
    """Not messages at all: the publisher hands over bytes as if they were serialized."""
    rng = np.random.default_rng(11)
    header = b"\0\1\0\0"
    for size in (0, 1, 4, 7, 40, 300, 5000):
        for publisher in (client.images, client.compressed, client.queries, client.texts):
            publisher.publish(header + rng.bytes(size))
    client.ask()
    good = make_image(pattern())
    assert_answers(client, client.ask_about(good), good)
    assert "Traceback" not in node.output()


def test_a_malformed_image_is_answered_with_the_reason(client):
    client.images.publish(b"\0\1\0\0" + bytes(3))
    answer = client.ask()

    assert answer.error_code == Answer.ERROR_UNSUPPORTED_ENCODING
    assert "malformed Image message" in answer.error_msg
