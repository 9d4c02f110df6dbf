"""Write a model directory all or nothing: into a sibling folder, renamed when it is complete."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edge_atp.errors import ArtifactError
from edge_atp.runtime.manifest import FILE_NAME


@contextlib.contextmanager
def staged_directory(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to write into; on success it takes the place of ``out``, on error it is removed.

    Raises:
        ArtifactError: ``out`` exists and may not be replaced (only an earlier export may).
    """
    out = out.resolve()
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        if not (out / FILE_NAME).is_file():
            raise ArtifactError(f"{out} exists and is no model directory; choose another --out")
        if not overwrite:
            raise ArtifactError(f"{out} exists; give --overwrite to replace it")
    out.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        yield staged
        staged.chmod(0o755)
        _replace(staged, out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _replace(staged: Path, out: Path) -> None:
    if not out.exists():
        staged.rename(out)
        return
    # Two renames: at no time does `out` hold a mixture of old and new files.
    old = staged.with_suffix(".replaced")
    out.rename(old)
    staged.rename(out)
    shutil.rmtree(old, ignore_errors=True)
