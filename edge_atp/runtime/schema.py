"""Read a JSON object into frozen dataclasses, with messages that name the field.

Handles what the manifest needs: nested dataclasses, tuples of one element type, optional fields,
and the scalars str, int, float, bool. Unknown fields are ignored, so that an older runtime reads
a manifest with additional information.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any, TypeVar

from edge_atp.errors import ArtifactError

T = TypeVar("T")


def parse(cls: type[T], value: Any, where: str) -> T:
    """Build the dataclass ``cls`` from a decoded JSON object.

    Args:
        cls: a frozen dataclass; fields without a default are required.
        value: the decoded JSON.
        where: name used in messages, such as ``manifest.json: llm``.
    Raises:
        ArtifactError: a field is missing or of the wrong type; the message names it.
    """
    if not isinstance(value, dict):
        raise ArtifactError(f"{where} is {_shown(value)}; it must be an object")
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        path = f"{where}.{field.name}"
        if field.name in value:
            arguments[field.name] = _convert(hints[field.name], value[field.name], path)
        elif _required(field):
            raise ArtifactError(f"{path} is missing; export the model again")
    return cls(**arguments)


def to_json(value: Any) -> Any:
    """The inverse of ``parse``: dataclasses to plain JSON values."""
    return dataclasses.asdict(value)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ArtifactError(f"{where} is {_shown(value)}; it must be a list")
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ArtifactError(f"{where} is {_shown(value)}; it must be an object")
        return {key: _convert(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return parse(typing.cast(type, hint), value, where)
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    # bool is a subclass of int: a JSON `true` must not pass for a count.
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ArtifactError(f"{where} is {_shown(value)}; it must be of type {hint.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ArtifactError(f"{where} is {value}; it must be finite")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
