"""Standing questions of a YAML file, as parameter ``standing_questions`` names it.

    - query_id: hazard                 # default: q1, q2, ... by position
      text: what hazard is on the floor?
      cameras: [front, left]           # default: all
      max_rate: 2.0                    # Hz; default: every frame
      priority: 5                      # 0 to 255
      deadline: 0.5                    # seconds from the frame's arrival; default: none
      max_frame_age: 0.5               # seconds; default: the node's
      max_new_tokens: 16
      choices: [pallet, spill, nothing]
      prune: {policy: token_budget, method: atp, max_visual_tokens: 64, alpha: 0.5}

Names and meanings are those of ``edge_atp_msgs/Query``, with durations in seconds and the pruning
policy by its name. Whether the model can answer them is checked when they are set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from edge_atp_msgs.msg import PruneConfig
from edge_atp_msgs.msg import Query as QueryMessage

from edge_atp.errors import ConfigError
from edge_atp_ros.convert import to_duration

_POLICIES = {
    name.removeprefix("POLICY_").lower(): getattr(PruneConfig, name)
    for name in dir(PruneConfig)
    if name.startswith("POLICY_") and name != "POLICY__DEFAULT"  # rosidl's, of field `policy`
}
_UINT32 = 2**32 - 1


def read_standing_questions(path: str | Path) -> list[QueryMessage]:
    """Read the questions of a file.

    Raises:
        ConfigError: the file cannot be read, or an entry is wrong; names the file, the entry, the
            field, its value and what is allowed.
    """
    try:
        content = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"standing_questions is {path}, which cannot be read: {error}") from error
    if not isinstance(content, list):
        raise ConfigError(
            f"{path}: expected a list of questions, got {type(content).__name__}; begin each with"
            " '- text: ...'"
        )
    messages = []
    for number, entry in enumerate(content, start=1):
        message = _message(f"{path}: question {number}", entry)
        message.query_id = message.query_id or f"q{number}"
        messages.append(message)
    ids = [message.query_id for message in messages]
    if twice := sorted({query_id for query_id in ids if ids.count(query_id) > 1}):
        raise ConfigError(f"{path}: query_id {', '.join(twice)} occurs more than once")
    return messages


def _message(where: str, entry: Any) -> QueryMessage:
    message = QueryMessage(mode=QueryMessage.MODE_STANDING)
    for name, value in _checked(where, entry, _FIELDS).items():
        setattr(message, name, value)
    if not message.text:
        raise ConfigError(f"{where}: text is missing; give the question")
    return message


def _checked(where: str, entry: Any, fields: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    """Each value of a mapping as its field's function reads it."""
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where} is {entry!r}; give a mapping of {', '.join(fields)}")
    if unknown := [str(name) for name in entry if name not in fields]:
        raise ConfigError(
            f"{where}: unknown field {', '.join(unknown)}; known: {', '.join(fields)}"
        )
    values = {}
    for name, value in entry.items():
        try:
            values[name] = fields[name](value)
        except ValueError as error:
            raise ConfigError(f"{where}: {name} is {value!r}; {error}") from None
    return values


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("give a text")
    return value


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("give a list of texts, as in [a, b]")
    return value


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"give an integer in [{low}, {high}]")
        return value

    return read


def _number(low: float, high: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not low <= value <= high:  # NaN fails, too
            raise ValueError(f"give a number in [{low:g}, {high:g}]")
        return float(value)

    return read


def _seconds(value: Any) -> Any:
    return to_duration(_number(0.0, 86400.0)(value))


def _policy(value: Any) -> int:
    name = str(value).lower()
    if name not in _POLICIES:
        raise ValueError(f"choose one of {', '.join(sorted(_POLICIES))}")
    return int(_POLICIES[name])


_PRUNE_FIELDS: dict[str, Callable[[Any], Any]] = {
    "policy": _policy,
    "method": _text,
    "keep_ratio": _number(0.0, 1.0),
    "max_visual_tokens": _integer(1, _UINT32),
    "score_mass": _number(0.0, 1.0),
    "latency_budget": _seconds,
    "alpha": _number(0.0, 1.0),
}


def _prune(value: Any) -> PruneConfig:
    try:
        return PruneConfig(**_checked("prune", value, _PRUNE_FIELDS))
    except ConfigError as error:
        raise ValueError(str(error)) from None


_FIELDS: dict[str, Callable[[Any], Any]] = {
    "query_id": _text,
    "text": _text,
    "cameras": _texts,
    "max_rate": _number(0.0, 1000.0),
    "priority": _integer(0, 255),
    "deadline": _seconds,
    "max_frame_age": _seconds,
    "max_new_tokens": _integer(0, _UINT32),
    "choices": _texts,
    "prune": _prune,
}
