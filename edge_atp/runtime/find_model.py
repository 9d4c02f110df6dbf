"""Where is the model directory that a user names? Does not open or check it."""

from __future__ import annotations

from pathlib import Path

from edge_atp.errors import ArtifactError

_SHIPPED = Path(__file__).resolve().parents[2] / "models"
_MANIFEST = "manifest.json"


def find_model(name_or_path: str) -> Path:
    """Model directory of a path, or of a model shipped with the project by its name.

    Raises:
        ArtifactError: neither exists; says what was looked at and what is shipped.
    """
    path = Path(name_or_path).expanduser()
    if (path / _MANIFEST).is_file():
        return path
    looks_like_name = len(path.parts) == 1 and name_or_path not in (".", "..")
    shipped = _SHIPPED / name_or_path / "onnx"
    if looks_like_name and (shipped / _MANIFEST).is_file():
        return shipped
    names = sorted(p.parents[1].name for p in _SHIPPED.glob(f"*/onnx/{_MANIFEST}"))
    raise ArtifactError(
        f"no model directory at {name_or_path!r} (it must hold {_MANIFEST});"
        f" shipped models: {', '.join(names) or 'none'}."
        " Make one with `python -m export --model CHECKPOINT --out DIR`"
    )
