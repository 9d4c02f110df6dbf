"""The cameras of a recorded bag, and their images in order of time. Decodes no pixels.

A camera is an image topic. Its name is the one given with ``NAME=TOPIC``, else the last part of
the topic's namespace: `/camera/image_raw/compressed` is "camera".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_atp.errors import BagError, ConfigError
from edge_atp.replay.bags import open_bag, read_messages
from edge_atp.replay.images import to_rgb
from edge_atp.replay.interfaces import COMPRESSED_IMAGE, IMAGE
from edge_atp.types import Frame

_COMPRESSED_SUFFIX = "/compressed"
_IMAGE_TYPES = (IMAGE, COMPRESSED_IMAGE)


@dataclass(frozen=True)
class RecordedImage:
    """One image message; the pixels are decoded on request.

    time_ns: when it was recorded. message: Image or CompressedImage as `rosbags` reads it.
    """

    camera: str
    time_ns: int
    message: Any

    @property
    def stamp_ns(self) -> int:
        """Capture time by the publisher's clock, as its header says."""
        stamp = self.message.header.stamp
        return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)

    @property
    def frame_id(self) -> str:
        """TF frame of the camera, as its header says."""
        return str(self.message.header.frame_id)

    def frame(self) -> Frame:
        """The image as the pipeline takes it.

        Raises:
            ImageError: empty, truncated or in an encoding that is not supported.
        """
        return Frame(to_rgb(self.message), self.stamp_ns, self.frame_id, self.camera)


class Recording:
    """An open bag; see ``open_recording``.

    topics: image topic of each camera, by name. start_ns, duration_s: of the whole bag.
    """

    def __init__(self, path: Path, reader: Any, topics: Mapping[str, str]) -> None:
        self.path = path
        self.topics = dict(topics)
        self.start_ns = int(reader.start_time)
        self.duration_s = (int(reader.end_time) - self.start_ns) / 1e9
        self._reader = reader
        names = {topic: camera for camera, topic in topics.items()}
        self._connections = [
            c for c in reader.connections if c.topic in names and c.msgtype in _IMAGE_TYPES
        ]
        self._names = names

    @property
    def num_images(self) -> int:
        """Images of all cameras."""
        return sum(connection.msgcount for connection in self._connections)

    def images(self) -> Iterator[RecordedImage]:
        """All images in order of time.

        Raises:
            BagError: a part of the file is damaged.
        """
        for connection, time_ns, message in read_messages(
            self.path, self._reader, self._connections
        ):
            yield RecordedImage(self._names[connection.topic], time_ns, message)


@contextmanager
def open_recording(
    path: Path, typestore: Any, cameras: Mapping[str, str] | None = None, ignore: str = ""
) -> Iterator[Recording]:
    """Open a bag and settle its cameras.

    Args:
        path: rosbag2 folder or file.
        typestore: for bags without message definitions.
        cameras: topic of each camera, by name; None or empty: every image topic.
        ignore: topics below this name are no cameras (the node's own pictures).
    Raises:
        BagError: unreadable, or without the images asked for.
    """
    with open_bag(path, typestore) as reader:
        image_topics = {c.topic: c.msgtype for c in reader.connections if c.msgtype in _IMAGE_TYPES}
        if cameras:
            topics = _chosen(path, cameras, image_topics)
        else:
            own = f"{ignore}/" if ignore else "//"  # no topic begins with two slashes
            topics = _found(path, [t for t in image_topics if not t.startswith(own)])
        yield Recording(path, reader, topics)


def parse_cameras(words: list[str]) -> dict[str, str]:
    """``NAME=TOPIC`` options as a mapping.

    Raises:
        ConfigError: not of that form, or a name or topic given twice.
    """
    cameras: dict[str, str] = {}
    for word in words:
        name, equals, topic = word.partition("=")
        if not (name and equals and topic):
            raise ConfigError(f"camera {word!r} must be NAME=TOPIC, as in front=/front/image_raw")
        topic = topic if topic.startswith("/") else f"/{topic}"
        if name in cameras or topic in cameras.values():
            raise ConfigError(f"camera {word!r}: its name or its topic was given before")
        cameras[name] = topic
    return cameras


def _chosen(
    path: Path, cameras: Mapping[str, str], image_topics: Mapping[str, str]
) -> dict[str, str]:
    topics = {}
    for name, topic in cameras.items():
        held = [t for t in (topic, topic + _COMPRESSED_SUFFIX) if t in image_topics]
        if not held:
            raise BagError(
                f"bag {path} holds no images on {topic} (camera {name!r}); image topics:"
                f" {', '.join(sorted(image_topics)) or 'none'}"
            )
        topics[name] = held[0]
    return topics


def _found(path: Path, image_topics: list[str]) -> dict[str, str]:
    if not image_topics:
        raise BagError(
            f"bag {path} holds no images (sensor_msgs/Image or CompressedImage) to ask about"
        )
    topics: dict[str, str] = {}
    # Sorted, the raw topic comes before its compressed copy and is taken.
    for topic in sorted(image_topics):
        if topic.removesuffix(_COMPRESSED_SUFFIX) in topics.values():
            continue
        name = _camera_name(topic)
        if name in topics:
            raise BagError(
                f"bag {path}: {topics[name]} and {topic} would both be camera {name!r};"
                " name the cameras with --camera NAME=TOPIC"
            )
        topics[name] = topic
    return topics


def _camera_name(topic: str) -> str:
    parts = topic.removesuffix(_COMPRESSED_SUFFIX).strip("/").split("/")
    return parts[-2] if len(parts) > 1 else parts[0]
