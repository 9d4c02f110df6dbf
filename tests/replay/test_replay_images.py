"""Recorded images become the pixels the live node sees."""

import cv2
import numpy as np
import pytest

from edge_atp.errors import ImageError
from edge_atp.replay.images import to_rgb

RGB = np.random.default_rng(3).integers(0, 256, (6, 8, 3), dtype=np.uint8)
PACKED = ("uyvy", "yuv422", "yuyv", "yuv422_yuy2")


def pixels_of(encoding):
    """An array of the encoding's layout with random values."""
    channels = 1
    for number, names in ((3, ("rgb", "bgr", "8UC3")), (4, ("rgba", "bgra", "8UC4")), (2, PACKED)):
        if encoding.startswith(names):
            channels = number
    dtype = np.uint16 if "16" in encoding else np.uint8
    shape = (6, 8, channels)
    return np.random.default_rng(7).integers(0, np.iinfo(dtype).max, shape).astype(dtype)


def live_encodings():
    try:
        from edge_atp_ros.images import SUPPORTED_ENCODINGS
    except ImportError:
        return []
    return list(SUPPORTED_ENCODINGS)


@pytest.mark.skipif(not live_encodings(), reason="needs the built ROS workspace")
@pytest.mark.parametrize("encoding", live_encodings() or ["none"])
@pytest.mark.parametrize("is_bigendian", [0, 1])
def test_pixels_equal_those_of_the_live_node(image_message, encoding, is_bigendian):
    from edge_atp_ros.images import to_rgb as live_to_rgb

    pixels = pixels_of(encoding)
    if is_bigendian:
        pixels = pixels.astype(pixels.dtype.newbyteorder(">"))
    message = image_message(pixels, encoding, is_bigendian=is_bigendian)
    np.testing.assert_array_equal(to_rgb(message), live_to_rgb(message))


def test_colours_are_in_order(image_message):
    np.testing.assert_array_equal(to_rgb(image_message(RGB)), RGB)
    np.testing.assert_array_equal(to_rgb(image_message(RGB[..., ::-1], "bgr8")), RGB)


def test_row_padding_is_left_out(image_message):
    padded = np.pad(RGB.reshape(6, 24), ((0, 0), (0, 8)))
    message = image_message(RGB, step=32, data=padded.reshape(-1))
    np.testing.assert_array_equal(to_rgb(message), RGB)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("grey", [False, True])
def test_compressed_images_are_decoded(typestore, image_message, suffix, grey):
    pixels = cv2.cvtColor(RGB, cv2.COLOR_RGB2GRAY) if grey else RGB[..., ::-1]
    _, encoded = cv2.imencode(suffix, np.ascontiguousarray(pixels))
    kind = typestore.types["sensor_msgs/msg/CompressedImage"]
    header = image_message(RGB).header
    decoded = to_rgb(kind(header=header, format="x", data=encoded.reshape(-1)))
    assert decoded.shape == (6, 8, 3)
    if suffix == ".png" and not grey:
        np.testing.assert_array_equal(decoded, RGB)
    with pytest.raises(ImageError, match=r"truncated|cannot be decoded"):
        to_rgb(kind(header=header, format="x", data=encoded.reshape(-1)[:-20]))
    with pytest.raises(ImageError, match="empty"):
        to_rgb(kind(header=header, format="x", data=encoded.reshape(-1)[:0]))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"encoding": "32FC1"}, "encoding '32FC1' is not supported"),
        ({"encoding": "nv12"}, "encoding 'nv12' is not supported"),
        ({"encoding": "cmyk"}, "encoding 'cmyk' is not supported"),
        ({"step": 20}, "need 24 bytes a row; step is 20"),
        ({"data": np.zeros(100, np.uint8)}, "data has 100 bytes"),
    ],
)
def test_what_cannot_be_read_is_refused(image_message, changes, says):
    with pytest.raises(ImageError, match=says):
        to_rgb(image_message(RGB, **changes))
