"""A recorded bag as a sequence of serialized messages, ready to publish. No node, no clock.

Reads rosbag2 (sqlite3, mcap) through `rosbags`; needs no ROS bag tools.
"""

from __future__ import annotations

import importlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosbags.rosbag2 import Reader, ReaderError

# A message that begins with a std_msgs/Header has its stamp after the 4-byte CDR header.
_STAMP_OFFSET = 4
_LITTLE_ENDIAN = 1


@dataclass(frozen=True)
class RecordedTopic:
    """name, message class, whether messages begin with a Header, and whether it was latched."""

    name: str
    message_type: Any
    stamped: bool
    latched: bool


@dataclass(frozen=True)
class RecordedMessage:
    """time_ns: when it was recorded. serialized: CDR, as the publisher takes it."""

    topic: str
    time_ns: int
    serialized: bytes


class RecordingError(Exception):
    """The bag cannot be played; the message names the file."""


class Recording:
    """An open bag. Use as a context manager.

    Args:
        path: bag folder, or a single .mcap or .db3 file.
    Raises:
        RecordingError: missing, damaged, or without a message of an installed type.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser()
        if not self.path.exists():
            raise RecordingError(f"bag {self.path} does not exist")
        try:
            self._reader = Reader(self.path)
            self._reader.open()
        except (ReaderError, OSError, ValueError, KeyError) as error:
            raise RecordingError(f"bag {self.path} cannot be read: {error}") from error
        self.topics: dict[str, RecordedTopic] = {}
        self.skipped: dict[str, str] = {}
        for connection in self._reader.connections:
            self._add_topic(connection)
        if not self.topics:
            self._reader.close()
            types = ", ".join(sorted(set(self.skipped.values()))) or "no messages"
            raise RecordingError(
                f"bag {self.path} holds nothing that can be published here ({types}); install"
                " the packages of its message types"
            )

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    @property
    def start_ns(self) -> int:
        """Time of the first message."""
        return self._reader.start_time

    @property
    def duration_s(self) -> float:
        """From the first message to the last."""
        return self._reader.duration / 1e9

    @property
    def num_messages(self) -> int:
        """Messages on the topics that can be published."""
        return sum(c.msgcount for c in self._reader.connections if c.topic in self.topics)

    def messages(self) -> Iterator[RecordedMessage]:
        """All messages in order of time."""
        connections = [c for c in self._reader.connections if c.topic in self.topics]
        for connection, time_ns, serialized in self._reader.messages(connections):
            yield RecordedMessage(connection.topic, time_ns, bytes(serialized))

    def _add_topic(self, connection: Any) -> None:
        message_type = _message_class(connection.msgtype)
        if message_type is None:
            self.skipped[connection.topic] = connection.msgtype
            return
        fields = list(message_type.get_fields_and_field_types().items())
        self.topics[connection.topic] = RecordedTopic(
            name=connection.topic,
            message_type=message_type,
            stamped=bool(fields) and fields[0] == ("header", "std_msgs/Header"),
            latched=any(
                qos.durability.name == "TRANSIENT_LOCAL"
                for qos in connection.ext.offered_qos_profiles
            ),
        )


def restamp(serialized: bytes, now_ns: int) -> bytes:
    """The same message with its header's stamp replaced.

    Args:
        serialized: CDR of a message that begins with a std_msgs/Header.
        now_ns: the new stamp.
    """
    order = "<" if serialized[1] & 1 == _LITTLE_ENDIAN else ">"
    stamp = struct.pack(f"{order}iI", now_ns // 1_000_000_000, now_ns % 1_000_000_000)
    end = _STAMP_OFFSET + len(stamp)
    return serialized[:_STAMP_OFFSET] + stamp + serialized[end:]


def _message_class(name: str) -> Any:
    """The Python class of `package/msg/Name`, None where the package is not installed."""
    package, _, kind = name.partition("/msg/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), kind)
    except (ImportError, AttributeError):
        return None
