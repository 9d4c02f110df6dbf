"""A model directory on disk: the manifest and the files it lists, each checked by its hash.

Knows nothing of what the graphs do. Nothing in the directory is executed, and no path may leave
it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from edge_atp.errors import ArtifactError
from edge_atp.runtime.manifest import FILE_NAME, FileSpec, Manifest, read_manifest

# Lies in a folder whose export has not finished; python -m export removes it at the end.
UNFINISHED = "export_unfinished.jsonl"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelDirectory:
    """An opened model directory.

    path: the directory, absolute.
    manifest: its manifest.
    """

    path: Path
    manifest: Manifest

    @classmethod
    def open(
        cls, path: Path | str, *, verify: bool = True, unfinished: bool = False
    ) -> ModelDirectory:
        """Open a directory written by ``python -m export``.

        Args:
            path: the directory.
            verify: read every listed file and compare its SHA-256 (about 1 GB/s); without it
                only presence and size are checked.
            unfinished: also open what an export is still working on; for the exporter itself.
        Raises:
            ArtifactError: a file is missing, truncated or altered, or leaves the directory, or
                the export did not finish; the message names it and says what to do.
        """
        root = Path(path).expanduser().resolve()
        if not root.is_dir():
            raise ArtifactError(f"{root} is no directory; give the one `python -m export` wrote")
        if not unfinished and (root / UNFINISHED).exists():
            raise ArtifactError(
                f"{root} holds an export that did not finish and was not compared with the"
                " original; run the same `python -m export` again, it continues"
            )
        directory = cls(root, read_manifest(root / FILE_NAME))
        for spec in directory.manifest.files:
            directory._check(spec, verify)
        listed = {spec.path for spec in directory.manifest.files}
        for graph in directory.manifest.graphs:
            if graph.file not in listed:
                raise ArtifactError(
                    f"{FILE_NAME}: graph {graph.role!r} names {graph.file!r}, which `files` does"
                    " not list with a hash; export the model again"
                )
        return directory

    def file(self, role: str) -> Path:
        """Path of the file with that role (the first where several share it).

        Raises:
            ArtifactError: the manifest lists none.
        """
        for spec in self.manifest.files:
            if spec.role == role:
                return self._inside(spec.path)
        roles = ", ".join(sorted({spec.role for spec in self.manifest.files}))
        raise ArtifactError(
            f"{self.path / FILE_NAME} lists no file of role {role!r} (it has {roles});"
            " export the model again"
        )

    def has(self, role: str) -> bool:
        """Whether the manifest lists a file of that role."""
        return any(spec.role == role for spec in self.manifest.files)

    def sha256(self, role: str) -> str:
        """The hash of the file with that role, as the manifest states it."""
        path = self.file(role)
        return next(s.sha256 for s in self.manifest.files if self._inside(s.path) == path)

    def _inside(self, relative: str) -> Path:
        path = (self.path / relative).resolve()
        if not path.is_relative_to(self.path) or path == self.path:
            raise ArtifactError(
                f"{FILE_NAME}: file {relative!r} leaves the model directory {self.path}; refused"
            )
        return path

    def _check(self, spec: FileSpec, verify: bool) -> None:
        path = self._inside(spec.path)
        if not path.is_file():
            raise ArtifactError(
                f"{path} is missing; copy the whole model directory again, or export it again"
            )
        size = path.stat().st_size
        if size != spec.bytes:
            raise ArtifactError(
                f"{path} has {size} bytes, the manifest says {spec.bytes}: truncated or altered;"
                " copy the model directory again, or export it again"
            )
        if verify and (found := file_sha256(path)) != spec.sha256:
            raise ArtifactError(
                f"{path} has SHA-256 {found[:12]}..., the manifest says {spec.sha256[:12]}...:"
                " damaged or altered; copy the model directory again, or export it again"
            )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as a hexadecimal string, read in chunks."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error})") from error
    return digest.hexdigest()
