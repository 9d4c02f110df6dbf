"""Put chosen pruning defaults into a model's YAML, comments and order untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from edge_atp.errors import ConfigError

_SECTION = "export"
_NAMES = ("alpha", "relevance_source", "keep_ratio")


def write_yaml(path: Path, chosen: dict[str, Any]) -> None:
    """Replace alpha, relevance_source and keep_ratio in the ``export`` section, or add them.

    Args:
        path: a model's YAML, as ``python -m export`` reads it.
        chosen: the values by name.
    Raises:
        ConfigError: the file cannot be read or has no such section.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get(_SECTION), dict):
        raise ConfigError(f"{path}: no model YAML; it must have a section `{_SECTION}`")
    lines = text.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"{_SECTION}:")) + 1
    # The section ends at the next line that starts a key of the first level.
    end = next(
        (n for n in range(start, len(lines)) if lines[n][:1] not in ("", " ", "#")), len(lines)
    )
    section = lines[start:end]
    for name in _NAMES:
        section = _with_value(section, name, chosen[name])
    path.write_text("\n".join([*lines[:start], *section, *lines[end:]]) + "\n", encoding="utf-8")


def _with_value(section: list[str], name: str, value: Any) -> list[str]:
    for number, line in enumerate(section):
        if line.strip().startswith(f"{name}:"):
            setting, mark, comment = line.partition("#")
            indent = setting[: len(setting) - len(setting.lstrip())]
            note = f"  # {comment.strip()}" if mark else ""
            return [*section[:number], f"{indent}{name}: {value}{note}", *section[number + 1 :]]
    return [f"  {name}: {value}", *section]
