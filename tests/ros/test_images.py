"""ROS image messages <-> arrays; another library's conversions are the reference."""

from __future__ import annotations

import array

import cv2
import numpy as np
import pytest

pytest.importorskip("sensor_msgs", reason="needs ROS 2: run through scripts/with_ros")

from edge_atp_ros.images import SUPPORTED_ENCODINGS, to_image, to_rgb
from rosbags.image import message_to_cvimage
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from edge_atp.errors import ImageError

CHANNELS = {"rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4, "mono": 1}
HEIGHT, WIDTH = 12, 10
# rosbags-image has no opinion on these; they are checked below.
WITHOUT_REFERENCE = {"8UC1", "8UC3", "8UC4", "16UC1"}


def shape_of(encoding: str) -> tuple[int, ...]:
    if encoding.startswith("bayer") or encoding in ("8UC1", "16UC1"):
        return HEIGHT, WIDTH
    if encoding in ("uyvy", "yuv422", "yuyv", "yuv422_yuy2"):
        return HEIGHT, WIDTH, 2
    if encoding.startswith("8UC"):
        return HEIGHT, WIDTH, int(encoding[-1])
    channels = CHANNELS[encoding.rstrip("0123456789")]
    return (HEIGHT, WIDTH) if channels == 1 else (HEIGHT, WIDTH, channels)


def noise(encoding: str) -> np.ndarray:
    dtype = np.uint16 if encoding.startswith("16") or encoding.endswith("16") else np.uint8
    rng = np.random.default_rng(7)
    return rng.integers(0, np.iinfo(dtype).max + 1, shape_of(encoding)).astype(dtype)


def message(pixels: np.ndarray, encoding: str, pad_bytes: int = 0, big_endian: bool = False):
    if big_endian:
        pixels = pixels.astype(pixels.dtype.newbyteorder(">"))
    rows = pixels.reshape(len(pixels), -1).view(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, pad_bytes)), constant_values=99)
    return Image(
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=big_endian,
        step=rows.shape[1],
        data=array.array("B", rows.tobytes()),
    )


@pytest.mark.parametrize("encoding", sorted(set(SUPPORTED_ENCODINGS) - WITHOUT_REFERENCE))
def test_each_encoding_converts_as_the_reference_does(encoding):
    image = message(noise(encoding), encoding)
    expected = message_to_cvimage(image, "rgb8")

    converted = to_rgb(image)

    assert converted.shape == (HEIGHT, WIDTH, 3)
    assert converted.dtype == np.uint8
    # 16-bit values are rounded here and truncated there.
    tolerance = 1 if encoding.endswith("16") else 0
    assert np.abs(converted.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize(
    ("encoding", "same_as"), [("8UC1", "mono8"), ("8UC3", "bgr8"), ("8UC4", "bgra8")]
)
def test_opencv_type_names_have_opencvs_colour_order(encoding, same_as):
    pixels = noise(encoding)
    np.testing.assert_array_equal(
        to_rgb(message(pixels, encoding)), to_rgb(message(pixels, same_as))
    )


@pytest.mark.parametrize("encoding", SUPPORTED_ENCODINGS)
@pytest.mark.parametrize("pad_bytes", [2, 64])
def test_padding_changes_nothing(encoding, pad_bytes):
    pixels = noise(encoding)
    np.testing.assert_array_equal(
        to_rgb(message(pixels, encoding, pad_bytes)), to_rgb(message(pixels, encoding))
    )


def test_big_endian_16_bit():
    pixels = noise("mono16")
    np.testing.assert_array_equal(
        to_rgb(message(pixels, "mono16", big_endian=True)), to_rgb(message(pixels, "mono16"))
    )


def test_16_bit_covers_the_full_range():
    pixels = np.array([[0, 257 * 100, 65535]], np.uint16)
    np.testing.assert_array_equal(to_rgb(message(pixels, "mono16"))[0, :, 0], [0, 100, 255])


def test_rgb8_is_not_copied():
    image = message(noise("rgb8"), "rgb8")
    assert np.shares_memory(to_rgb(image), np.frombuffer(image.data, np.uint8))


@pytest.mark.parametrize(
    ("kind", "channels"), [(".jpg", 1), (".jpg", 3), (".png", 1), (".png", 3), (".png", 4)]
)
def test_compressed_images_of_any_kind_become_rgb(kind, channels):
    pixels = np.full((20, 30, channels), 200, np.uint8)
    pixels[..., 0] = 40
    _, data = cv2.imencode(kind, pixels)
    rgb = to_rgb(CompressedImage(format=kind, data=array.array("B", data.tobytes())))

    assert rgb.shape == (20, 30, 3)
    expected = [40, 40, 40] if channels == 1 else [200, 200, 40]
    np.testing.assert_allclose(rgb[10, 10], expected, atol=4)


def test_a_16_bit_png_becomes_8_bit():
    _, data = cv2.imencode(".png", np.full((4, 4), 257 * 80, np.uint16))
    rgb = to_rgb(CompressedImage(format="png", data=array.array("B", data.tobytes())))
    np.testing.assert_array_equal(rgb, np.full((4, 4, 3), 80, np.uint8))


def changed(**changes):
    image = message(noise("rgb8"), "rgb8")
    for name, value in changes.items():
        setattr(image, name, value)
    return image


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (changed(encoding="rgb9"), "encoding is 'rgb9'; supported: 16UC1"),
        (changed(encoding=""), "encoding is ''"),
        (changed(height=0), "empty"),
        (changed(width=0), "empty"),
        (changed(data=array.array("B")), "data has 0 bytes"),
        (changed(data=array.array("B", b"x" * 100)), "data has 100 bytes"),
        (changed(step=0), "step is 0 bytes"),
        (changed(step=29), "step is 29 bytes; a row of 10 rgb8 pixels takes 30"),
        (changed(step=31), "step x height is 31 x 12 = 372"),
        (changed(width=2**31), "a row of 2147483648"),
        (message(np.zeros((4, 5, 2), np.uint8), "yuyv"), "pixels come in pairs"),
        (CompressedImage(), "0 bytes"),
        (CompressedImage(format="webm", data=array.array("B", b"1234")), "webm"),
    ],
)
def test_what_is_wrong_with_an_image_is_said(image, reason):
    with pytest.raises(ImageError) as caught:
        to_rgb(image)
    assert reason in str(caught.value)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", [".jpg", ".png"])
def test_a_truncated_picture_is_refused(kind, share):
    """OpenCV would show the part that is there and grey below it."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    _, data = cv2.imencode(kind, pixels)
    cut = data.tobytes()[: int(len(data) * share)]
    with pytest.raises(ImageError, match="truncated"):
        to_rgb(CompressedImage(data=array.array("B", cut)))


def test_zeros_after_a_jpeg_are_no_harm():
    _, data = cv2.imencode(".jpg", np.full((8, 8, 3), 90, np.uint8))
    padded = data.tobytes() + bytes(100)
    assert to_rgb(CompressedImage(data=array.array("B", padded))).shape == (8, 8, 3)


@pytest.mark.parametrize("pixels", [noise("mono8"), noise("rgb8")])
def test_images_written_are_read_back(pixels):
    header = Header(frame_id="cam")
    image = to_image(pixels, header)

    assert image.header == header
    assert image.encoding == ("mono8" if pixels.ndim == 2 else "rgb8")
    expected = pixels if pixels.ndim == 3 else np.dstack([pixels] * 3)
    np.testing.assert_array_equal(to_rgb(image), expected)
