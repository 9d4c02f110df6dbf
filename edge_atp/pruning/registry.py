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


def option_names(name: str) -> tuple[str, ...]:
    """Names of the options that the method ``name`` takes.

    Raises:
        ConfigError: unknown method; lists the choices.
    """
    return tuple(field.name for field in dataclasses.fields(_method(name)))


def load(name: str, **options: Any) -> Pruner:
    """Build the pruning method ``name``.

    Args:
        name: one of ``available()``.
        options: the method's own options, the fields of its ``Method`` dataclass.
    Raises:
        ConfigError: unknown method, unknown option, or an option out of range.
    """
    known = option_names(name)
    if unknown := set(options) - set(known):
        allowed = ", ".join(known) or "no options"
        raise ConfigError(f"{name} has no option {', '.join(sorted(unknown))}; it takes {allowed}")
    pruner: Pruner = _method(name)(**options)
    return pruner


def _method(name: str) -> Any:
    if name not in available():
        raise ConfigError(
            f"unknown pruning method {name!r}; choose one of {', '.join(available())}"
        )
    return importlib.import_module(f"edge_atp.pruning.{name}").Method
