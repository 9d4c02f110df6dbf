"""Which model directory does a user mean? Does not open or check the graphs.

A shipped model is a file ``models/<name>.yaml`` whose section ``directories`` lists its exports,
best first: ``<name>`` stands for the one that runs on the best backend, ``<name>:<variant>`` for
that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from edge_atp.errors import ArtifactError, BackendUnavailableError, ConfigError
from edge_atp.runtime import sessions
from edge_atp.runtime.manifest import FILE_NAME, read_manifest

_SHIPPED = Path(__file__).resolve().parents[2] / "models"


@dataclass(frozen=True)
class FoundModel:
    """A model directory.

    reason: why this one of several; empty where the user named it.
    """

    path: Path
    reason: str = ""


def find_model(name_or_path: str, backend: str = sessions.AUTO) -> FoundModel:
    """Model directory of a path, or of a model shipped with the project by its name.

    Args:
        name_or_path: a path, ``<name>`` or ``<name>:<variant>``.
        backend: what is to run it, as ``sessions.choose`` takes it.
    Raises:
        ArtifactError: neither exists; says what was looked at and what is shipped.
        ConfigError, BackendUnavailableError: the backend is unknown or runs none of the exports.
    """
    path = Path(name_or_path).expanduser()
    if (path / FILE_NAME).is_file():
        return FoundModel(path)
    name, _, variant = name_or_path.partition(":")
    listed = _SHIPPED / f"{name}.yaml"
    # This file alone: parsing all of them would delay every start.
    variants = _directories(listed) if name == listed.stem and listed.is_file() else {}
    if not variant and variants:
        return _best(name, variants, backend)
    if variant in variants:
        return FoundModel(variants[variant].path)
    names = [
        f"{n} ({', '.join(f'{n}:{v}' for v in found)})" for n, found in shipped_models().items()
    ]
    raise ArtifactError(
        f"no model directory at {name_or_path!r} (it must hold {FILE_NAME});"
        f" shipped models: {', '.join(names) or 'none'}."
        " Make one with `python -m export --model CHECKPOINT --out DIR`"
    )


def shipped_models() -> dict[str, dict[str, FoundModel]]:
    """Exports that lie in this checkout, by model and variant, the best first."""
    found = {}
    for file in sorted(_SHIPPED.glob("*.yaml")):
        if variants := _directories(file):
            found[file.stem] = variants
    return found


def _directories(file: Path) -> dict[str, FoundModel]:
    try:
        listed = yaml.safe_load(file.read_text(encoding="utf-8")).get("directories", {})
        found = {
            str(variant): FoundModel(file.parent / entry["path"], str(entry["reason"]))
            for variant, entry in listed.items()
        }
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file}: directories must be a mapping of names to path and reason ({error!r})"
        ) from error
    return {v: model for v, model in found.items() if (model.path / FILE_NAME).is_file()}


def _best(name: str, variants: Mapping[str, FoundModel], backend: str) -> FoundModel:
    """The variant whose backend comes first in ``sessions.available``; of several, the first."""
    order = sessions.available()
    chosen: list[tuple[int, str, str]] = []
    for variant, model in variants.items():
        manifest = read_manifest(model.path / FILE_NAME)
        try:
            found, _ = sessions.choose_for(manifest, backend)
        except BackendUnavailableError as error:
            problem = error
        else:
            chosen.append((order.index(found), variant, found))
    if not chosen:
        raise problem
    _, variant, found = min(chosen, key=lambda entry: entry[0])
    others = ", ".join(f"{name}:{other}" for other in variants if other != variant)
    reason = f"{name} is {name}:{variant} on {found} ({variants[variant].reason})"
    return FoundModel(variants[variant].path, reason + (f"; there is {others}" if others else ""))
