"""Which files of an unfinished export are complete, so that the next run goes on from there.

One JSON line per file, appended and synced when the file is complete; the first line says what
the export is of. A run with other settings, another checkpoint or another exporter starts anew.
The journal is also the mark by which ``ModelDirectory.open`` refuses a folder that is not finished.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from edge_atp.errors import ArtifactError
from edge_atp.runtime.manifest import FileSpec
from edge_atp.runtime.model_dir import UNFINISHED, file_sha256

_CODE = Path(__file__).parent


class Journal:
    """The finished files of one folder. Holds a lock: one export writes to a folder at a time.

    Args:
        folder: where the export writes; what is neither finished nor of this export is deleted.
        fingerprint: of everything that decides what the files hold, see ``fingerprint``.
    Raises:
        ArtifactError: another export is writing there.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        self._finished: dict[str, FileSpec] = {}
        self._stream: IO[str] = (folder / UNFINISHED).open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._stream.close()
            raise ArtifactError(
                f"another export is writing to {folder}; wait for it, or choose another --out"
            ) from error
        for spec in self._read(fingerprint):
            if _is_whole(folder, spec):
                self._finished[spec.path] = spec
        self._rewrite(fingerprint)
        _delete_all_but(folder, {UNFINISHED, *self._finished})

    def finished(self, names: Iterable[str]) -> bool:
        """Whether all these files are complete."""
        return all(name in self._finished for name in names)

    def record(self, role: str, name: str) -> FileSpec:
        """Note that a file is complete; returns its entry for the manifest.

        A file that was finished by an earlier run keeps the entry it has.
        """
        if name not in self._finished:
            path = self.folder / name
            spec = FileSpec(role, name, file_sha256(path), path.stat().st_size)
            self._append(vars(spec))
            self._finished[name] = spec
        return self._finished[name]

    def discard_unfinished(self) -> None:
        """Delete what was being written when the export stopped."""
        _delete_all_but(self.folder, {UNFINISHED, *self._finished})

    def close(self) -> None:
        """Release the lock."""
        self._stream.close()

    def _read(self, fingerprint: str) -> list[FileSpec]:
        self._stream.seek(0)
        first, *lines = self._stream.read().splitlines() or [""]
        entries: list[FileSpec] = []
        try:
            if json.loads(first) != {"fingerprint": fingerprint}:
                return []
            for line in lines:
                entries.append(FileSpec(**json.loads(line)))
        except (ValueError, TypeError):
            # A line cut off by a crash: what stands before it is still true.
            pass
        return entries

    def _rewrite(self, fingerprint: str) -> None:
        self._stream.seek(0)
        self._stream.truncate()
        self._append({"fingerprint": fingerprint})
        for spec in self._finished.values():
            self._append(vars(spec))

    def _append(self, entry: dict[str, Any]) -> None:
        self._stream.write(json.dumps(entry) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())


def fingerprint(parts: dict[str, Any]) -> str:
    """Hash of what decides the contents of an export's files, the exporter's own code included."""
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    for file in sorted(_CODE.rglob("*.py")):
        digest.update(file.relative_to(_CODE).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _is_whole(folder: Path, spec: FileSpec) -> bool:
    path = folder / spec.path
    if not path.is_file() or path.stat().st_size != spec.bytes:
        return False
    return file_sha256(path) == spec.sha256


def _delete_all_but(folder: Path, names: set[str]) -> None:
    for path in folder.iterdir():
        if path.is_file() and path.name not in names:
            path.unlink()
