"""Decoder dialects: which operators attention, rotary embedding and RMSNorm are written in.

One module each, found by name (``ort-gqa`` is ``ort_gqa.py``); a class ``Form`` implements
``base.Dialect``.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from edge_atp.errors import ConfigError
from export.dialects.base import Dialect

_INFRASTRUCTURE = frozenset({"base"})


def available() -> tuple[str, ...]:
    """Names of all dialects."""
    names = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return tuple(sorted(n.replace("_", "-") for n in names if n not in _INFRASTRUCTURE))


def load_dialect(name: str) -> type[Dialect]:
    """The class of a dialect.

    Raises:
        ConfigError: unknown; the choices are listed.
    """
    if name not in available():
        raise ConfigError(f"unknown dialect {name!r}; choose one of {', '.join(available())}")
    form: type[Dialect] = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").Form
    return form
