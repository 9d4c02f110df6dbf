"""The VLM node as its clients see it: every encoding, size and policy; real DDS, default model."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_msgs.msg import Answer, PruneConfig
from vlm_client import (
    QUESTION,
    assert_answers,
    bits,
    make_compressed,
    make_image,
    pattern,
)

RATIO = PruneConfig.POLICY_KEEP_RATIO
OFF = {"policy": PruneConfig.POLICY_OFF}


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
    client.show(make_image(pattern()))
    dense = client.ask(prune=OFF)
    full = client.ask(prune={"policy": RATIO, "keep_ratio": 1.0, "method": method})

    assert dense.prune_method == "none"
    assert full.prune_method == method
    assert full.text == dense.text


def test_alpha_zero_ignores_the_question(client):
    client.show(make_image(pattern()))
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
    client.show(make_image(pattern(seed=3)))
    first, second = client.ask(), client.ask()

    assert (first.text, first.confidence) == (second.text, second.confidence)
    assert client.mask_of(first).masks == client.mask_of(second).masks
