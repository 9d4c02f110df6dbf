"""Writes the result bag: whole or not at all.

A name that ends in .mcap is a single file, any other a rosbag2 folder with metadata.yaml. The bag
is written beside its destination and moved there when it is complete.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from edge_atp.errors import BagError
from edge_atp.replay.bags import load_rosbags

_SUFFIX = ".mcap"
# A bag's file names itself inside; one name for all, so that equal results are equal files.
_NAME = "result"
_METADATA = "metadata.yaml"
_VERSION = 8  # of the metadata; read by Humble and later


class ResultBag:
    """A bag being written; use as a context manager. Leaving it with an error removes the bag.

    Args:
        path: where the bag will be.
        typestore: types of the messages.
        topics: message type of each topic.
        replace_existing: replace a bag that is there.
    Raises:
        BagError: something is there already, or the place cannot be written.
    """

    def __init__(
        self, path: Path, typestore: Any, topics: dict[str, str], replace_existing: bool = False
    ) -> None:
        if path.exists() and not replace_existing:
            raise BagError(f"{path} exists already; choose another --out, or add --force")
        if path.is_dir() and not (path / _METADATA).is_file():
            raise BagError(f"{path} is a folder but not a bag, and is not replaced")
        self.path = path
        self.num_messages = 0
        self._typestore = typestore
        rosbag2 = load_rosbags("rosbag2")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._scratch = Path(tempfile.mkdtemp(prefix=f".{path.stem}.", dir=path.parent))
        except OSError as error:
            raise BagError(f"cannot write {path}: {error.strerror}") from error
        self._folder = self._scratch / _NAME
        self._writer = rosbag2.Writer(
            self._folder, version=_VERSION, storage_plugin=rosbag2.StoragePlugin.MCAP
        )
        self._writer.set_compression(
            rosbag2.CompressionMode.STORAGE, rosbag2.CompressionFormat.ZSTD
        )
        self._writer.__enter__()
        self._connections = {
            topic: self._writer.add_connection(topic, kind, typestore=typestore)
            for topic, kind in topics.items()
        }

    def __enter__(self) -> ResultBag:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
            else:
                self._writer.__exit__(kind, error, trace)
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def write(self, topic: str, time_ns: int, message: Any) -> None:
        """Append a message of the typestore's types."""
        kind = self._connections[topic].msgtype
        self.write_serialized(topic, time_ns, self._typestore.serialize_cdr(message, kind))

    def write_serialized(self, topic: str, time_ns: int, serialized: bytes | memoryview) -> None:
        """Append a message as it travels (CDR with its header), such as one heard from a node.

        Raises:
            BagError: the place cannot be written.
        """
        connection = self._connections[topic]
        try:
            self._writer.write(connection, time_ns, serialized)
        except OSError as error:
            raise BagError(f"cannot write {self.path}: {error.strerror}") from error
        self.num_messages += 1

    def _finish(self) -> None:
        if not self.num_messages:
            error = BagError(
                f"{self.path} is not written: no question was due in the recording; compare `at`"
                " and `until` of the questions with its length"
            )
            self._writer.__exit__(BagError, error, None)
            raise error
        try:
            self._writer.__exit__(None, None, None)
            if self.path.is_dir() and not self.path.is_symlink():
                shutil.rmtree(self.path)
            if self.path.suffix == _SUFFIX:
                (self._folder / f"{_NAME}{_SUFFIX}").replace(self.path)
            else:
                self.path.unlink(missing_ok=True)
                self._folder.replace(self.path)
        except OSError as error:
            raise BagError(f"cannot write {self.path}: {error.strerror}") from error
