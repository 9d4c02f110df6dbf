"""Where calibrations are kept, and which one belongs to what is running."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_atp.cost_model.model import STAGE_TERMS, CostModel, Identity
from edge_atp.errors import ArtifactError

FORMAT_VERSION = 1
_REMEDY = "run `edge-atp bench DIR --calibrate`"


def calibration_folder() -> Path:
    """Where calibrations of this user are kept: $XDG_CACHE_HOME or ~/.cache, edge_atp inside."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return cache / "edge_atp" / "calibration"


def calibration_path(identity: Identity) -> Path:
    """The usual file of a model on a backend: <model>-<hash>-<backend>[-tN].json."""
    name = "".join(c if c.isalnum() or c in "._" else "_" for c in identity.model_id)
    threads = f"-t{identity.num_threads}" if identity.num_threads else ""
    stem = f"{name}-{identity.model_sha256[:12]}-{identity.backend}{threads}"
    return calibration_folder() / f"{stem}.json"


def write_calibration(model: CostModel, path: Path) -> Path:
    """Write a cost model as JSON, whole or not at all.

    Raises:
        ArtifactError: the file cannot be written.
    """
    content = {"format_version": FORMAT_VERSION, **asdict(model)}
    content["terms"] = {stage: list(terms) for stage, terms in STAGE_TERMS.items()}
    with _partial(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    return path


def require_writable(path: Path) -> None:
    """Find out before minutes of measuring whether a calibration can be written there.

    Raises:
        ArtifactError: it cannot.
    """
    with _partial(path) as partial:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        partial.touch()


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """A file beside ``path`` that is gone afterwards, unless it was renamed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
    except OSError as error:
        raise ArtifactError(
            f"calibration cannot be written to {path} ({error.strerror}); give --out, or set"
            " XDG_CACHE_HOME to a folder that can be written"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def read_calibration(path: Path) -> CostModel:
    """Read what ``write_calibration`` wrote.

    Raises:
        ArtifactError: missing, damaged, or of another version; says how to make a new one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format_version"]
        if version != FORMAT_VERSION or content["terms"] != {
            stage: list(terms) for stage, terms in STAGE_TERMS.items()
        }:
            raise ArtifactError(f"{path} was written by another version of edge_atp; {_REMEDY}")
        coefficients = {
            stage: tuple(float(value) for value in content["coefficients"][stage])
            for stage in STAGE_TERMS
        }
        if not all(math.isfinite(v) and v >= 0 for vs in coefficients.values() for v in vs):
            raise ValueError("a coefficient is negative or not finite")
        if any(len(coefficients[stage]) != len(terms) for stage, terms in STAGE_TERMS.items()):
            raise ValueError("a stage has too few coefficients")
        return CostModel(
            identity=Identity(**content["identity"]),
            coefficients=coefficients,
            min_kept=int(content["min_kept"]),
            max_kept=int(content["max_kept"]),
            answer_tokens=int(content["answer_tokens"]),
            method=str(content["method"]),
            residuals=content["residuals"],
            created=str(content["created"]),
        )
    except FileNotFoundError:
        raise ArtifactError(f"no calibration at {path}; {_REMEDY}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} is no calibration ({error}); {_REMEDY}") from error


def load_calibration(identity: Identity, path: Path | None = None) -> CostModel:
    """The cost model of a model on this device.

    Args:
        identity: what is running.
        path: the file; None for the usual place.
    Raises:
        ArtifactError: none was made, it is damaged, or it belongs to another model, backend,
            device or number of threads; names both and says what to do.
    """
    where = path or calibration_path(identity)
    if not where.exists():
        others = sorted(f.name for f in where.parent.glob(f"{identity.model_id}-*.json"))
        known = f" (there are {', '.join(others)}, for other files or backends)" if others else ""
        raise ArtifactError(
            f"no calibration of {identity.model_id} on {identity.backend} at {where}{known};"
            " run `edge-atp bench DIR --calibrate` on this device"
        )
    model = read_calibration(where)
    for name, found in asdict(model.identity).items():
        wanted = getattr(identity, name)
        if found != wanted:
            raise ArtifactError(
                f"{where} was calibrated with {name} {_short(found)}, but this is"
                f" {_short(wanted)}; run `edge-atp bench DIR --calibrate` again, here"
            )
    return model


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else repr(value)
