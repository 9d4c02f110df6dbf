"""Hostile images: each becomes pixels of its own size or an ImageError, and the node lives on.

Hypothesis chooses the shape of each message and shrinks what fails. The examples are the same in
every run, so that a failure here is never a matter of luck.
"""

from __future__ import annotations

import array
import struct
import zlib

import numpy as np
import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_msgs.msg import PruneConfig
from edge_atp_msgs.msg import Query as QueryMessage
from edge_atp_ros.convert import to_query
from edge_atp_ros.images import to_rgb
from edge_atp_ros.picture_header import MAX_PIXELS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage, Image

from benchmarks import ros_fuzz
from edge_atp.errors import ImageError, InvalidQueryError
from edge_atp.types import Query

FUZZ = settings(
    max_examples=5000,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@FUZZ
@given(ros_fuzz.raw_images())
def test_any_raw_image_becomes_pixels_or_an_image_error(image: Image):
    try:
        pixels = to_rgb(image)
    except ImageError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape == (image.height, image.width, 3)
    assert len(image.data) == image.step * image.height


@FUZZ
@given(ros_fuzz.compressed_images())
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


@pytest.mark.parametrize("picture", ros_fuzz.PICTURES)
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


def test_over_dds_each_is_answered_as_its_conversion_says():
    """400 of the kind of which `python -m benchmarks.ros_fuzz` sends 10,000."""
    report = ros_fuzz.run(400)

    assert report.faults == ()
    assert report.messages == report.refused + report.answered_about == 400
    assert report.answered_about > 0
    assert report.sound == 2
