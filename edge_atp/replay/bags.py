"""Opening bags with `rosbags`, and its errors as ours. Knows nothing of what a bag holds."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_atp.errors import BackendUnavailableError, BagError


def load_rosbags(module: str) -> Any:
    """Import a module of `rosbags`.

    Raises:
        BackendUnavailableError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(f"rosbags.{module}")
    except ImportError as error:
        raise BackendUnavailableError(
            f"reading and writing bags needs rosbags ({error}): pip install 'edge-atp[bags]'"
        ) from error


@contextmanager
def open_bag(path: Path, typestore: Any) -> Iterator[Any]:
    """A rosbag2 (folder, .mcap or .db3) as a ``rosbags.highlevel.AnyReader``.

    Args:
        path: the bag.
        typestore: types of messages for bags that carry no definitions (sqlite3 before Iron).
    Raises:
        BagError: missing, damaged, empty or of another format; also while it is being read.
    """
    highlevel = load_rosbags("highlevel")
    if not path.exists():
        raise BagError(f"bag {path} does not exist")
    try:
        reader = highlevel.AnyReader([path], default_typestore=typestore)
        reader.open()
    # A damaged file can fail anywhere in the parser.
    except Exception as error:
        raise BagError(f"bag {path} cannot be read: {error or type(error).__name__}") from error
    try:
        if not reader.message_count:
            raise BagError(f"bag {path} holds no messages")
        yield reader
    finally:
        reader.close()


def read_messages(
    path: Path, reader: Any, connections: Collection[Any]
) -> Iterator[tuple[Any, int, Any]]:
    """(connection, time_ns, message) of some of a bag's connections, in order of time.

    Raises:
        BagError: a part of the file or a message is damaged; names the file and where.
    """
    if not connections:
        return
    messages = reader.messages(connections)
    where = "its first message"
    while True:
        try:
            connection, time_ns, serialized = next(messages)
            where = f"{connection.topic} at second {(time_ns - reader.start_time) / 1e9:.3f}"
            message = reader.deserialize(serialized, connection.msgtype)
        except StopIteration:
            return
        except Exception as error:  # whatever a damaged file makes the parser do
            reason = error or type(error).__name__
            raise BagError(f"bag {path} is damaged at or after {where}: {reason}") from error
        yield connection, time_ns, message
