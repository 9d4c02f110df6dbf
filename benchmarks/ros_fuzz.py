"""Hostile images over DDS: does each get its one answer, and the node live on?

    scripts/with_ros python -m benchmarks.ros_fuzz [--messages 10000] [--json OUT]

Hypothesis makes raw and compressed images that are wrong in their fields, or damaged where they are
serialized (cut, bytes changed, lengths absurd); the same ones in every run. Each is published to a
real node, which holds a standing question about the camera, and the next follows its answer. Exit
code 1 unless each is answered as the conversion itself says, in this process: with its error, or
about exactly that image. In between and at the end a sound image is asked about.
"""

from __future__ import annotations

import argparse
import array
import json
import struct
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from edge_atp_msgs.msg import Answer, Query
from edge_atp_msgs.srv import SetQuery
from edge_atp_ros.images import SUPPORTED_ENCODINGS, to_rgb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image

from benchmarks.ros_bench import (
    NODE,
    VlmProcess,
    call,
    make_image,
    picture,
    spinning,
    use_own_domain,
    vlm_process,
    wait_until,
)

COMPLETE = frozenset({Answer.STATUS_FINAL, Answer.STATUS_TRUNCATED})
_TOPIC = "/camera/image_raw"
_ID = "fuzz"
_SOUND_EVERY = 500
# Best effort may lose an image; it is then sent again.
_TRIES, _PATIENCE_S = 6, 10.0
_SIDES = st.one_of(st.integers(0, 12), st.sampled_from([2**16, 2**31, 2**32 - 1]))
_FLIP, _CUT, _INSERT, _APPEND, _MARKER = range(5)
_MUTATIONS = st.lists(
    st.tuples(st.integers(_FLIP, _MARKER), st.integers(0, 4095), st.integers(0, 255)), max_size=5
)
# Where a serialized image's stamp ends; what comes before decides whether it is the newest.
_AFTER_STAMP = 12
# DDS itself needs these bytes, or sends nothing.
_ENCAPSULATION = 4
_LENGTH = b"\xff\xff\xff\x7f"


# What is sent ------------------------------------------------------------------------------------


@st.composite
def raw_images(draw: st.DrawFn) -> Image:
    """Right in most respects: what is wrong everywhere is refused at the first check."""
    encoding = draw(st.sampled_from([*SUPPORTED_ENCODINGS, "", "32FC1", "rgb8\0"]))
    height, width = draw(_SIDES), draw(_SIDES)
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
    image.data = array.array("B", _noise(seed, min(max(size, 0), 4096)))
    return image


def _pictures() -> list[bytes]:
    """Small sound JPEGs and PNGs, in colour and grey, one of them progressive."""
    pixels = np.random.default_rng(3).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    options = {".jpg": [[], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]], ".png": [[]]}
    made = []
    for kind, variants in options.items():
        for variant in variants:
            made.append(cv2.imencode(kind, pixels, variant)[1].tobytes())
            made.append(cv2.imencode(kind, pixels[..., 0].copy(), variant)[1].tobytes())
    return made


PICTURES = _pictures()


@st.composite
def compressed_images(draw: st.DrawFn) -> CompressedImage:
    """A picture with some bytes changed, cut out, put in, or appended."""
    content = bytearray(draw(st.sampled_from([*PICTURES, b""])))
    for kind, place, value in draw(_MUTATIONS):
        at = place % max(len(content), 1)
        if kind == _FLIP:
            content[at : at + 1] = bytes([value])
        elif kind == _CUT:
            del content[at : at + value % 40]
        elif kind == _MARKER:
            content[at : at + 2] = bytes([0xFF, value])
        else:
            where = at if kind == _INSERT else len(content)
            content[where:where] = _noise(place, value % 30)
    return CompressedImage(
        format=draw(st.sampled_from(["jpeg", "", "x" * 99])), data=array.array("B", content)
    )


@st.composite
def hostile_messages(draw: st.DrawFn) -> tuple[type, bytes]:
    """The type of a message, and its bytes; a fifth is as it was serialized."""
    image = draw(st.one_of(raw_images(), compressed_images()))
    image.header.frame_id = draw(st.sampled_from(["", "cam", "f" * 300]))
    content = bytearray(serialize_message(image))
    damage = draw(st.integers(0, 4))
    if damage in (1, 2):
        del content[draw(st.integers(_ENCAPSULATION, len(content))) :]
    elif damage == 3:
        for _ in range(draw(st.integers(1, 8))):
            content[draw(st.integers(_AFTER_STAMP, len(content) - 1))] = draw(st.integers(0, 255))
    elif damage == 4:
        at = draw(st.integers(_AFTER_STAMP, min(len(content), 80) - 4)) & ~3
        content[at : at + 4] = _LENGTH
    # On the wire a message is filled up to whole words; filled up here, both sides read the same.
    content.extend(bytes(-len(content) % 4))
    return type(image), bytes(content)


def _noise(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


# Sending it --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What was seen; ``faults`` is empty if nothing was wrong.

    answered_about: of the messages, those that are images after all.
    again: sent again, because best effort lost them.
    """

    messages: int
    answered_about: int
    refused: int
    again: int
    sound: int
    seconds: float
    faults: tuple[str, ...]


class Camera:
    """Publishes images to the node and waits for the standing question's answer to each."""

    def __init__(self, node: Node) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self._number = 0
        self._arrived = threading.Condition()
        self._answers: list[Answer] = []
        self.publishers: dict[type, Publisher] = {
            Image: node.create_publisher(Image, _TOPIC, qos_profile_sensor_data),
            CompressedImage: node.create_publisher(
                CompressedImage, f"{_TOPIC}/compressed", qos_profile_sensor_data
            ),
        }
        node.create_subscription(Answer, f"{NODE}/answer", self._on_answer, QoSProfile(depth=1000))

    def send_hostile(self, kind: type, content: bytes) -> None:
        """Publish one message and compare its answer with what the conversion says of it."""
        stamp = self._next_stamp()
        if len(content) >= _AFTER_STAMP:
            content = content[:4] + struct.pack("<iI", stamp.sec, 0) + content[_AFTER_STAMP:]
        reason = refusal(kind, content)
        answer = self._answer_to(kind, content)
        self.counts["messages"] += 1
        self.counts["refused" if reason else "answered_about"] += 1
        if answer is None:
            self._fault(kind, content, "no answer")
        elif reason and answer.error_code != Answer.ERROR_UNSUPPORTED_ENCODING:
            self._fault(kind, content, f"{reason!r}, but error code {answer.error_code}")
        elif not reason and (answer.status not in COMPLETE or answer.header.stamp != stamp):
            self._fault(kind, content, f"an image, but {answer.error_msg!r}, {answer.header}")
        if self.counts["messages"] % _SOUND_EVERY == 0:
            self.send_sound()

    def send_sound(self) -> None:
        """Publish a picture; it has to be answered about."""
        stamp = self._next_stamp()
        image = make_image(picture(), "cam", stamp.sec * 10**9)
        answer = self._answer_to(Image, serialize_message(image))
        self.counts["sound"] += 1
        if answer is None or answer.status not in COMPLETE or answer.header != image.header:
            self.faults.append(f"sound image {stamp.sec}: {answer}")

    def _answer_to(self, kind: type, content: bytes) -> Answer | None:
        for attempt in range(_TRIES):
            self.counts["again"] += attempt > 0
            with self._arrived:
                self._answers.clear()
            self.publishers[kind].publish(content)
            with self._arrived:
                if self._arrived.wait_for(lambda: self._answers, _PATIENCE_S):
                    return self._answers[-1]
        return None

    def _next_stamp(self) -> Time:
        # Ten seconds apart: what comes a little before its predecessor would count as late.
        self._number += 10
        return Time(sec=self._number)

    def _fault(self, kind: type, content: bytes, what: str) -> None:
        self.faults.append(f"{kind.__name__} {content[:200].hex()} ({len(content)} bytes): {what}")

    def _on_answer(self, answer: Answer) -> None:
        if answer.query_id == _ID:
            with self._arrived:
                self._answers.append(answer)
                self._arrived.notify_all()


def refusal(kind: type, content: bytes) -> str:
    """Why serialized bytes are no image, "" if they are one."""
    try:
        to_rgb(deserialize_message(content, kind))
    except Exception as error:  # the middleware documents no error class
        return str(error) or type(error).__name__
    return ""


def run(messages: int) -> Report:
    """Send so many hostile messages to a node of its own."""
    with vlm_process("autostart:=true") as process, spinning("fuzz") as node:
        process.wait_for("active: cameras")
        camera = Camera(node)
        wait_until(
            lambda: all(p.get_subscription_count() for p in camera.publishers.values()),
            "the node listens to the camera",
        )
        query = Query(
            query_id=_ID, text="what is there?", max_new_tokens=1, mode=Query.MODE_STANDING
        )
        response = call(node, SetQuery, "set_query", SetQuery.Request(query=query))
        if not response.success:
            raise RuntimeError(response.error_msg)
        camera.send_sound()
        begun_s = time.perf_counter()
        _send_all(camera, messages)
        seconds = time.perf_counter() - begun_s
        camera.send_sound()
        return _report(camera, process, seconds)


def _send_all(camera: Camera, messages: int) -> None:
    chosen = settings(
        max_examples=messages,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    chosen(given(hostile_messages())(lambda message: camera.send_hostile(*message)))()


def _report(camera: Camera, process: VlmProcess, seconds: float) -> Report:
    if "Traceback" in process.output():
        camera.faults.append(process.output()[-2000:])
    counts = camera.counts
    return Report(
        messages=counts["messages"],
        answered_about=counts["answered_about"],
        refused=counts["refused"],
        again=counts["again"],
        sound=counts["sound"],
        seconds=round(seconds, 1),
        faults=tuple(camera.faults),
    )


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    use_own_domain()
    report = run(chosen.messages)
    text = json.dumps(asdict(report), indent=2)
    print(text)
    if chosen.json:
        chosen.json.write_text(text + "\n")
    return int(bool(report.faults))


if __name__ == "__main__":
    sys.exit(main())
