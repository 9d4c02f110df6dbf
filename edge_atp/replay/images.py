"""Recorded image messages -> (height, width, 3) uint8 RGB, the same pixels as in the live node.

`rosbags-image` converts the colours. What it leaves to the caller is done here: row padding,
checks against truncation, OpenCV's generic type names, and 16-bit values scaled to 8 bits.
Depth images and compressed formats other than OpenCV's are refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import ImageError
from edge_atp.replay.bags import load_rosbags

# OpenCV's own type names carry no colour order; as everywhere in OpenCV it is BGR.
_COLOUR_NAMES = {"8UC1": "mono8", "8UC3": "bgr8", "8UC4": "bgra8", "16UC1": "mono16"}
_PACKED_YUV = ("uyvy", "yuv422", "yuyv", "yuv422_yuy2")
_BAYER = ("bayer_rggb", "bayer_bggr", "bayer_gbrg", "bayer_grbg")
_CHANNELS = {"rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4, "mono": 1, **dict.fromkeys(_BAYER, 1)}
_BYTES_PER_PIXEL = {
    **{f"{colours}8": channels for colours, channels in _CHANNELS.items()},
    **{f"{colours}16": 2 * channels for colours, channels in _CHANNELS.items()},
    **dict.fromkeys(_PACKED_YUV, 2),
}
_FORMAT_MARKS = (("JPEG", b"\xff\xd8", b"\xff\xd9"), ("PNG", b"\x89PNG", b"IEND"))


def to_rgb(message: Any) -> NDArray[np.uint8]:
    """Pixels of a ``sensor_msgs`` Image or CompressedImage as `rosbags` deserialises it.

    Raises:
        ImageError: empty, truncated, or an encoding that is not supported.
    """
    return _decode(message) if hasattr(message, "format") else _convert(message)


def _convert(message: Any) -> NDArray[np.uint8]:
    image = load_rosbags("image")
    encoding = _COLOUR_NAMES.get(message.encoding, message.encoding)
    if encoding not in _BYTES_PER_PIXEL:
        known = ", ".join([*_BYTES_PER_PIXEL, *_COLOUR_NAMES])
        raise ImageError(f"image encoding {message.encoding!r} is not supported; known: {known}")
    row_bytes = message.width * _BYTES_PER_PIXEL[encoding]
    packed = replace(message, encoding=encoding, step=row_bytes, data=_rows(message, row_bytes))
    try:
        converted = image.image_to_cvimage(packed, "rgb16" if encoding.endswith("16") else "rgb8")
    except (image.ImageError, cv2.error) as error:
        raise ImageError(f"{message.encoding} image cannot be converted: {error}") from error
    rgb: NDArray[np.uint8] = (
        converted if converted.dtype == np.uint8 else cv2.convertScaleAbs(converted, alpha=1 / 257)
    )
    return rgb


def _rows(message: Any, row_bytes: int) -> NDArray[np.uint8]:
    """(height * row_bytes,) the message's data without the padding at the end of each row."""
    height, width, step = message.height, message.width, message.step
    if height == 0 or width == 0:
        raise ImageError(f"image is empty ({width} x {height} pixels)")
    data = np.asarray(message.data, dtype=np.uint8)
    if step < row_bytes or data.size != step * height:
        raise ImageError(
            f"image is truncated or wrongly filled in: {width} x {height} pixels of"
            f" {message.encoding} need {row_bytes} bytes a row; step is {step}, data has"
            f" {data.size} bytes"
        )
    return np.ascontiguousarray(data.reshape(height, step)[:, :row_bytes]).reshape(-1)


def _decode(message: Any) -> NDArray[np.uint8]:
    data = np.asarray(message.data, dtype=np.uint8)
    if data.size == 0:
        raise ImageError("compressed image is empty (0 bytes)")
    # OpenCV would fill up the rest of a cut picture with grey. Some cameras pad with zeros.
    whole = data.tobytes().rstrip(b"\0")
    for name, begin, end in _FORMAT_MARKS:
        if whole.startswith(begin) and end not in whole[-len(end) - 8 :]:
            raise ImageError(f"compressed image is truncated: {name} without its end mark")
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ImageError(f"compressed image cannot be decoded: {error}") from error
    if pixels is None:
        raise ImageError(
            f"compressed image (format {message.format[:40]!r}, {data.size} bytes) cannot be"
            " decoded: truncated, or neither JPEG nor PNG"
        )
    rgb: NDArray[np.uint8] = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return rgb
