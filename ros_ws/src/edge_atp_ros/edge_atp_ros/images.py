"""ROS images -> (height, width, 3) uint8 RGB arrays, and arrays -> ``sensor_msgs/Image``.

Reads without copying where the encoding allows it. OpenCV does the conversions; cv_bridge is not
used because it ties NumPy's and OpenCV's versions to those it was compiled with. Depth images
(32FC1 and the like) are refused: the model reads pictures.
"""

from __future__ import annotations

import array
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from edge_atp.errors import ImageError
from edge_atp_ros.picture_header import check_claims


@dataclass(frozen=True)
class _Encoding:
    """channels of ``dtype`` per pixel, and OpenCV's code to RGB (None: it is RGB)."""

    channels: int
    to_rgb: int | None
    dtype: str = "uint8"


# OpenCV names a Bayer pattern by its second row: RGGB is its BayerBG.
_BAYER = {
    "rggb": cv2.COLOR_BayerBG2RGB,
    "bggr": cv2.COLOR_BayerRG2RGB,
    "gbrg": cv2.COLOR_BayerGR2RGB,
    "grbg": cv2.COLOR_BayerGB2RGB,
}
_UYVY = _Encoding(2, cv2.COLOR_YUV2RGB_UYVY)
_YUYV = _Encoding(2, cv2.COLOR_YUV2RGB_YUY2)
_ENCODINGS: dict[str, _Encoding] = {
    "rgb8": _Encoding(3, None),
    "bgr8": _Encoding(3, cv2.COLOR_BGR2RGB),
    "rgba8": _Encoding(4, cv2.COLOR_RGBA2RGB),
    "bgra8": _Encoding(4, cv2.COLOR_BGRA2RGB),
    "mono8": _Encoding(1, cv2.COLOR_GRAY2RGB),
    "rgb16": _Encoding(3, None, "uint16"),
    "bgr16": _Encoding(3, cv2.COLOR_BGR2RGB, "uint16"),
    "rgba16": _Encoding(4, cv2.COLOR_RGBA2RGB, "uint16"),
    "bgra16": _Encoding(4, cv2.COLOR_BGRA2RGB, "uint16"),
    "mono16": _Encoding(1, cv2.COLOR_GRAY2RGB, "uint16"),
    # OpenCV's own type names carry no colour order; as everywhere in OpenCV it is BGR.
    "8UC1": _Encoding(1, cv2.COLOR_GRAY2RGB),
    "8UC3": _Encoding(3, cv2.COLOR_BGR2RGB),
    "8UC4": _Encoding(4, cv2.COLOR_BGRA2RGB),
    "16UC1": _Encoding(1, cv2.COLOR_GRAY2RGB, "uint16"),
    "uyvy": _UYVY,
    "yuv422": _UYVY,  # the older name of the same layout
    "yuyv": _YUYV,
    "yuv422_yuy2": _YUYV,
    **{f"bayer_{pattern}8": _Encoding(1, code) for pattern, code in _BAYER.items()},
    **{f"bayer_{pattern}16": _Encoding(1, code, "uint16") for pattern, code in _BAYER.items()},
}
_TAIL_BYTES = 1 << 16
_FORMAT_MARKS = (("JPEG", b"\xff\xd8", b"\xff\xd9"), ("PNG", b"\x89PNG", b"IEND"))
SUPPORTED_ENCODINGS = tuple(sorted(_ENCODINGS))


def to_rgb(message: Image | CompressedImage) -> NDArray[np.uint8]:
    """Pixels of an image message.

    Returns:
        (height, width, 3) uint8 RGB; for rgb8 a view of the message's data. 16-bit values are
        scaled from their full range.
    Raises:
        ImageError: empty, truncated, or an encoding that is not supported.
    """
    if isinstance(message, CompressedImage):
        return _decode(message)
    encoding = _ENCODINGS.get(message.encoding)
    if encoding is None:
        raise ImageError(
            f"encoding is {message.encoding[:40]!r}; supported: {', '.join(SUPPORTED_ENCODINGS)},"
            " or a sensor_msgs/CompressedImage"
        )
    pixels = _rows(message, encoding)
    if encoding.to_rgb is not None:
        pixels = cv2.cvtColor(pixels, encoding.to_rgb)
    return pixels if pixels.dtype == np.uint8 else cv2.convertScaleAbs(pixels, alpha=1 / 257)


def _rows(message: Image, encoding: _Encoding) -> NDArray[Any]:
    """(height, width[, channels]) view of the data without the padding at the end of each row."""
    height, width, step = message.height, message.width, message.step
    if height == 0 or width == 0:
        raise ImageError(f"image is empty ({width} x {height} pixels)")
    dtype = np.dtype(encoding.dtype).newbyteorder(">" if message.is_bigendian else "<")
    row_bytes = width * encoding.channels * dtype.itemsize
    if step < row_bytes:
        raise ImageError(
            f"step is {step} bytes; a row of {width} {message.encoding} pixels takes {row_bytes}"
        )
    data = np.frombuffer(message.data, dtype=np.uint8)
    if data.size != step * height:
        raise ImageError(
            f"data has {data.size} bytes; step x height is {step} x {height} = {step * height}"
            f" ({width} x {height} pixels, {message.encoding}): truncated or wrongly filled in"
        )
    if encoding in (_UYVY, _YUYV) and width % 2:
        raise ImageError(f"width is {width}; {message.encoding} pixels come in pairs")
    rows = data.reshape(height, step)[:, :row_bytes]
    if step % dtype.itemsize:  # rows begin in the middle of a value, which OpenCV cannot read
        rows = np.ascontiguousarray(rows)
    rows = rows.view(dtype)
    pixels = rows.astype(dtype.newbyteorder("="), copy=False)
    if encoding.channels > 1:
        pixels = pixels.reshape(height, width, encoding.channels)
    return pixels


def _decode(message: CompressedImage) -> NDArray[np.uint8]:
    data = np.frombuffer(message.data, dtype=np.uint8)
    if data.size == 0:
        raise ImageError("compressed image is empty (0 bytes)")
    name = f"compressed image (format {message.format[:40]!r}, {data.size} bytes)"
    _require_end(data)
    check_claims(data.tobytes(), name)
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ImageError(f"{name} cannot be decoded: {error}") from error
    if pixels is None:
        raise ImageError(f"{name} cannot be decoded: truncated or damaged")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _require_end(data: NDArray[np.uint8]) -> None:
    """Refuse a cut JPEG or PNG: OpenCV would fill up the rest of the picture with grey."""
    # Some cameras pad their JPEGs with zeros.
    tail = data[-_TAIL_BYTES:].tobytes().rstrip(b"\0")
    for name, begin, end in _FORMAT_MARKS:
        if data[: len(begin)].tobytes() == begin and end not in tail[-len(end) - 8 :]:
            raise ImageError(
                f"compressed image is truncated: {data.size} bytes of {name} without its end mark"
            )


def to_image(pixels: NDArray[np.uint8], header: Header) -> Image:
    """An image message from pixels.

    Args:
        pixels: (height, width) for mono8 or (height, width, 3) for rgb8, uint8.
        header: the header of the camera image it belongs to.
    """
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    return Image(
        header=header,
        height=height,
        width=width,
        encoding="mono8" if channels == 1 else "rgb8",
        step=width * channels,
        # bytes would be checked element by element: 13 to 20 ms an image.
        data=array.array("B", np.ascontiguousarray(pixels).tobytes()),
    )
