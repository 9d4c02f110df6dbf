"""A method's name is its module's name: a new file in this folder is a new method.

A method is a module that defines a class ``Method`` at its top level; the folder's other modules
(shared arithmetic, contracts) do not. Sources are searched, not imported, so listing the methods
costs no imports, and a method whose package is missing breaks nobody but itself.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.abc
import importlib.util
import pkgutil
import re
import sys
from typing import Any

from edge_atp.errors import ConfigError
from edge_atp.pruning.base import Pruner

_PACKAGE = "edge_atp.pruning"
_DEFINES_METHOD = re.compile(r"^class Method\b", re.MULTILINE)


def available(site: str | None = None) -> tuple[str, ...]:
    """Names of the pruning methods, sorted.

    Args:
        site: only those that cut tokens there ("post_encoder", "in_encoder", "in_llm"); None
            for all. Naming a site imports the methods.
    """
    modules = pkgutil.iter_modules(sys.modules[_PACKAGE].__path__)
    names = sorted(module.name for module in modules if _is_method(module.name))
    return tuple(name for name in names if site is None or _method(name).site == site)


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
    if not _is_method(name):
        raise ConfigError(
            f"unknown pruning method {name!r}; choose one of {', '.join(available())}"
        )
    return importlib.import_module(f"{_PACKAGE}.{name}").Method


def _is_method(name: str) -> bool:
    if not name.isidentifier():
        return False
    loaded = sys.modules.get(f"{_PACKAGE}.{name}")
    if loaded is not None:
        return hasattr(loaded, "Method")
    spec = importlib.util.find_spec(f"{_PACKAGE}.{name}")
    loader = spec.loader if spec else None
    if not isinstance(loader, importlib.abc.InspectLoader):
        return False
    source = loader.get_source(f"{_PACKAGE}.{name}")
    return source is not None and _DEFINES_METHOD.search(source) is not None
