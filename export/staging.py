"""Write a model directory all or nothing: into a sibling folder, renamed when it is complete.

What stops an export from outside (a full disk, Ctrl-C, a crash) leaves the finished files in the
sibling for the next run; it does not load. What is wrong with the export itself leaves nothing.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from edge_atp.errors import ArtifactError, EdgeAtpError
from edge_atp.runtime.manifest import FILE_NAME
from edge_atp.runtime.model_dir import UNFINISHED
from export.journal import Journal


@contextlib.contextmanager
def staged_directory(out: Path, *, overwrite: bool, fingerprint: str) -> Iterator[Journal]:
    """A folder to write into, with the journal of what is finished in it.

    On success it takes the place of ``out``. On an ``EdgeAtpError`` it is removed; on any other
    end the finished files stay, and an export with the same fingerprint goes on with them.

    Raises:
        ArtifactError: ``out`` exists and may not be replaced (only an earlier export may), or
            another export is writing there.
    """
    out = out.resolve()
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        if not (out / FILE_NAME).is_file():
            raise ArtifactError(f"{out} exists and is no model directory; choose another --out")
        if not overwrite:
            raise ArtifactError(f"{out} exists; give --overwrite to replace it")
    staged = staging_folder(out)
    staged.mkdir(parents=True, exist_ok=True)
    journal = Journal(staged, fingerprint)
    try:
        yield journal
        (staged / UNFINISHED).unlink()
        staged.chmod(0o755)
        _replace(staged, out)
    except EdgeAtpError:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    except BaseException:
        journal.discard_unfinished()
        raise
    finally:
        journal.close()


def staging_folder(out: Path) -> Path:
    """Where an export to ``out`` writes before it is complete."""
    return out.with_name(f".{out.name}.partial")


def _replace(staged: Path, out: Path) -> None:
    if not out.exists():
        staged.rename(out)
        return
    # Two renames: at no time does `out` hold a mixture of old and new files.
    old = staged.with_suffix(".replaced")
    shutil.rmtree(old, ignore_errors=True)
    out.rename(old)
    staged.rename(out)
    shutil.rmtree(old, ignore_errors=True)
