"""A family's name is its module's name: a new file in this folder is a new VLM family."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from edge_atp.errors import ConfigError
from edge_atp.hf.family import Family

# Modules of this folder that are not families.
_INFRASTRUCTURE = frozenset(
    {"assemble", "attach", "budget", "family", "registry", "settings", "tiles"}
)


def families() -> tuple[str, ...]:
    """Names of all VLM families, sorted."""
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    return tuple(sorted(m.name for m in modules if not m.ispkg and m.name not in _INFRASTRUCTURE))


def load_family(name: str) -> Family:
    """Import one family's module.

    Raises:
        ConfigError: unknown family; lists the choices.
    """
    if name not in families():
        raise ConfigError(f"unknown VLM family {name!r}; choose one of {', '.join(families())}")
    family: Family = importlib.import_module(f"edge_atp.hf.{name}").Model()
    return family


def family_of(model: Any) -> Family:
    """The family that serves a loaded model, by ``model.config.model_type``.

    Most families are named after their model type, so usually only that module is imported.

    Raises:
        ConfigError: no family serves it; lists the choices.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    names = families()
    for name in sorted(names, key=lambda name: name != model_type):
        family = load_family(name)
        if model_type in family.model_types:
            return family
    raise ConfigError(
        f"no VLM family serves model_type {model_type!r}; supported families:"
        f" {', '.join(names)}. Name one with family=..., or add edge_atp/hf/<family>.py"
    )
