"""A method's name is its module's name: a new file in this folder is a new method."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from pathlib import Path
from typing import Any

from edge_atp.errors import ConfigError
from edge_atp.pruning.base import Pruner

# Modules of this folder that are not methods.
_INFRASTRUCTURE = frozenset({"base", "registry", "ops"})


def available() -> tuple[str, ...]:
    """Names of all pruning methods, sorted."""
    folder = str(Path(__file__).parent)
    names = (module.name for module in pkgutil.iter_modules([folder]))
    return tuple(sorted(n for n in names if n not in _INFRASTRUCTURE and not n.startswith("_")))


def load(name: str, **options: Any) -> Pruner:
    """Build the pruning method ``name``.

    Args:
        name: one of ``available()``.
        options: the method's own options, the fields of its ``Method`` dataclass.
    Raises:
        ConfigError: unknown method, unknown option, or an option out of range.
    """
    if name not in available():
        raise ConfigError(
            f"unknown pruning method {name!r}; choose one of {', '.join(available())}"
        )
    method = importlib.import_module(f"edge_atp.pruning.{name}").Method
    known = {field.name for field in dataclasses.fields(method)}
    if unknown := set(options) - known:
        allowed = ", ".join(sorted(known)) or "no options"
        raise ConfigError(f"{name} has no option {', '.join(sorted(unknown))}; it takes {allowed}")
    pruner: Pruner = method(**options)
    return pruner
