"""10,000 hostile images: each becomes pixels of its own size or an ImageError, nothing else.

Hypothesis chooses the shape of each message and shrinks what fails. The examples are the same in
every run, so that a failure here is never a matter of luck.
"""

from __future__ import annotations

import array
import struct
import zlib

import cv2
import numpy as np
import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_msgs.msg import PruneConfig
from edge_atp_msgs.msg import Query as QueryMessage
from edge_atp_ros.convert import to_query
from edge_atp_ros.images import SUPPORTED_ENCODINGS, to_rgb
from edge_atp_ros.picture_header import MAX_PIXELS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage, Image

from edge_atp.errors import ImageError, InvalidQueryError
from edge_atp.types import Query

FUZZ = settings(
    max_examples=5000,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
BYTES_PER_PIXEL = {"rgb16": 6, "bgr16": 6, "rgba16": 8, "bgra16": 8, "mono16": 2, "16UC1": 2}
SIDES = st.one_of(st.integers(0, 12), st.sampled_from([2**16, 2**31, 2**32 - 1]))


def noise(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@st.composite
def raw_images(draw: st.DrawFn) -> Image:
    """Right in most respects: what is wrong everywhere is refused at the first check."""
    encoding = draw(st.sampled_from([*SUPPORTED_ENCODINGS, "", "32FC1", "rgb8\0", "\ud800"[:0]]))
    height, width = draw(SIDES), draw(SIDES)
    step = (width * draw(st.integers(0, 8)) + draw(st.sampled_from([0, 0, 0, -1, 1, 7]))) % 2**32
    size = step * height + draw(st.sampled_from([0, 0, 0, -1, 1, 1000]))
    seed = draw(st.integers(0, 2**32 - 1))
    image = Image(
        height=height,
        width=width,
        step=step,
        encoding=encoding,
        is_bigendian=draw(st.integers(0, 255)),
    )
    image.data = array.array("B", noise(seed, min(max(size, 0), 4096)))
    return image


@FUZZ
@given(raw_images())
def test_any_raw_image_becomes_pixels_or_an_image_error(image: Image):
    try:
        pixels = to_rgb(image)
    except ImageError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape == (image.height, image.width, 3)
    assert len(image.data) == image.step * image.height


def pictures() -> list[bytes]:
    pixels = np.random.default_rng(3).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    options = {".jpg": [[], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]], ".png": [[]]}
    made = []
    for kind, variants in options.items():
        for variant in variants:
            made.append(cv2.imencode(kind, pixels, variant)[1].tobytes())
            made.append(cv2.imencode(kind, pixels[..., 0].copy(), variant)[1].tobytes())
    return made


PICTURES = pictures()


FLIP, CUT, INSERT, APPEND, MARKER = range(5)
MUTATIONS = st.lists(
    st.tuples(st.integers(FLIP, MARKER), st.integers(0, 4095), st.integers(0, 255)), max_size=5
)


@st.composite
def compressed_images(draw: st.DrawFn) -> CompressedImage:
    content = bytearray(draw(st.sampled_from([*PICTURES, b""])))
    for kind, place, value in draw(MUTATIONS):
        at = place % max(len(content), 1)
        if kind == FLIP:
            content[at : at + 1] = bytes([value])
        elif kind == CUT:
            del content[at : at + value % 40]
        elif kind == MARKER:
            content[at : at + 2] = bytes([0xFF, value])
        else:
            where = at if kind == INSERT else len(content)
            content[where:where] = noise(place, value % 30)
    return CompressedImage(
        format=draw(st.sampled_from(["jpeg", "", "x" * 99])), data=array.array("B", content)
    )


@FUZZ
@given(compressed_images())
def test_any_compressed_image_becomes_pixels_or_an_image_error(image: CompressedImage):
    try:
        pixels = to_rgb(image)
    except ImageError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS


def with_size(picture: bytes, height: int, width: int) -> bytes:
    """The same picture claiming another size."""
    content = bytearray(picture)
    if picture[:4] == b"\x89PNG":
        content[16:24] = struct.pack(">II", width, height)
        content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    else:
        at = next(
            i for i in range(len(content)) if content[i : i + 2] in (b"\xff\xc0", b"\xff\xc2")
        )
        content[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(content)


@pytest.mark.parametrize("picture", PICTURES)
def test_a_small_message_cannot_claim_gigabytes(picture):
    """32000 x 32000 pixels would take 3 GB and a minute; OpenCV itself allows them."""
    small = with_size(picture, 8, 8)
    assert to_rgb(CompressedImage(data=array.array("B", small))).shape == (8, 8, 3)
    bomb = CompressedImage(format="jpeg", data=array.array("B", with_size(picture, 32000, 32000)))
    with pytest.raises(ImageError, match="32000 x 32000"):
        to_rgb(bomb)


ANY_FLOAT = st.floats(width=32, allow_nan=True, allow_infinity=True)


@settings(FUZZ, max_examples=1000)
@given(
    policy=st.integers(0, 255),
    keep_ratio=ANY_FLOAT,
    score_mass=ANY_FLOAT,
    alpha=ANY_FLOAT,
    max_visual_tokens=st.integers(0, 2**32 - 1),
    max_new_tokens=st.integers(0, 2**32 - 1),
    text=st.text(max_size=40),
)
def test_any_question_is_converted_or_invalid(text, max_new_tokens, **prune):
    message = QueryMessage(text=text, max_new_tokens=max_new_tokens, prune=PruneConfig(**prune))
    try:
        query = to_query(message)
    except InvalidQueryError:
        return
    assert isinstance(query, Query)
    assert query.text == text
