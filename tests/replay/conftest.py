"""Bags made on the spot, a pipeline that answers without a model, and one replayed result."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from replay_run import replay

from edge_atp.encoding import EXPORTED_CUT, Encoding, VisionCut
from edge_atp.errors import InvalidQueryError
from edge_atp.pruning import evit
from edge_atp.replay.interfaces import load_typestore
from edge_atp.types import (
    Answer,
    PatchGrid,
    PatchMask,
    SourceRegion,
    StageTimes,
    Status,
    TokenCounts,
)

START_NS = 1_700_000_000_000_000_000


@pytest.fixture(scope="session")
def typestore():
    return load_typestore()


@pytest.fixture
def image_message(typestore):
    """Makes a sensor_msgs/Image as rosbags reads it."""

    def make(pixels, encoding="rgb8", stamp_ns=START_NS, step=None, data=None, is_bigendian=0):
        types = typestore.types
        height, width = pixels.shape[:2]
        stamp = types["builtin_interfaces/msg/Time"](
            sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9
        )
        raw = np.frombuffer(pixels.tobytes(), dtype=np.uint8)
        return types["sensor_msgs/msg/Image"](
            header=types["std_msgs/msg/Header"](stamp=stamp, frame_id="optical"),
            height=height,
            width=width,
            encoding=encoding,
            is_bigendian=is_bigendian,
            step=len(raw) // height if step is None else step,
            data=raw if data is None else data,
        )

    return make


@pytest.fixture
def write_bag(tmp_path, typestore, image_message):
    """Writes a bag of 8x8 images: (topic, milliseconds from the start) each.

    The brightness of an image is its number in the list; the stamp is the time of recording.
    """
    from rosbags.rosbag2 import StoragePlugin, Writer

    def write(images, name="bag", encoding="rgb8"):
        path = tmp_path / name
        with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
            connections = {
                topic: writer.add_connection(topic, "sensor_msgs/msg/Image", typestore=typestore)
                for topic in dict.fromkeys(topic for topic, _ in images)
            }
            for number, (topic, offset_ms) in enumerate(images):
                time_ns = START_NS + offset_ms * 1_000_000
                pixels = np.full((8, 8, 3), number, dtype=np.uint8)
                message = image_message(pixels, encoding, time_ns)
                connection = connections[topic]
                data = typestore.serialize_cdr(message, connection.msgtype)
                writer.write(connection, time_ns, data)
        return path

    return write


@dataclass
class CountingPipeline:
    """Answers with what it was given: brightness of each frame, and counts its encodings.

    Questions that start with "cut" want the encoder that drops patches, those with "method" a
    method's own pieces.
    """

    encoded: list[int] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    pieces: list[int] = field(default_factory=list)

    def check(self, query, num_frames=1):
        if query.text == "refused":
            raise InvalidQueryError("text is refused")

    def wants_cut(self, query, num_images):
        kinds = {"cut": EXPORTED_CUT, "method": VisionCut(evit.Method(), 4)}
        return [kinds.get(query.text.split()[0])] * num_images

    def encode(self, frame, clock=None, *, cut=None):
        shelf = {None: self.encoded, EXPORTED_CUT: self.cut}.get(cut, self.pieces)
        shelf.append(int(frame.image[0, 0, 0]))
        clock.lap("queue_wait")  # as if a graph had been opened
        clock.lap("preprocess")
        clock.lap("vision_encode")
        if shelf is self.pieces:
            clock.lap("prune")
        return Encoding(frame, SourceRegion(0, 0, 8, 8), vision=None)

    def answer(self, query, encodings):
        grid = PatchGrid(2, 2)
        frames = [encoding.frame for encoding in encodings]
        return Answer(
            text=" ".join(str(frame.image[0, 0, 0]) for frame in frames),
            query_id=query.query_id,
            status=Status.FINAL,
            masks=tuple(
                PatchMask(frame, grid, SourceRegion(0, 0, 8, 8), np.array([1, 0, 0, 1], bool))
                for frame in frames
            ),
            tokens=TokenCounts(4, 2, 3, 1),
            times=StageTimes(prefill=0.5, total=0.5),
            confidence=0.5,
            method="atp",
            model_id="counting",
        )


@pytest.fixture
def counting_pipeline():
    return CountingPipeline()


@pytest.fixture(scope="session")
def result(tmp_path_factory):
    """The shipped bag, every tenth frame, with pictures and report: (bag, report folder)."""
    folder = tmp_path_factory.mktemp("result")
    assert replay(folder / "result.mcap", "--every", 10, "--report", folder / "report") == 0
    return folder / "result.mcap", folder / "report"
