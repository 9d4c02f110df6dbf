"""The questions of a replay: a YAML list, checked entry by entry.

    - ask: where is the red box?        # the only field an entry must have
      query_id: red_box                 # default: q1, q2, ... by position
      cameras: [camera]                 # default: all of the bag
      at: 12.6                          # seconds from the start of the recording;
      until: 14.6                       #   default: all of it
      mode: standing                    # or once: only the first frame of that time
      max_rate: 2.0                     # answers per second at most; default: every frame
      max_new_tokens: 16
      choices: [top shelf, bottom shelf]
      prune: {method: atp, keep_ratio: 0.25, alpha: 0.5}
      expect: bottom shelf, slot 3      # the true answer, for the report

Names are those of ``edge_atp_msgs/Query`` where it has the field. Whether the model can answer
them is checked by the pipeline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edge_atp.errors import ConfigError
from edge_atp.types import Policy, PruneSpec, Query

ONCE, STANDING = "once", "standing"
_FIELDS = (
    *("ask", "query_id", "cameras", "at", "until", "mode", "max_rate"),
    *("max_new_tokens", "choices", "prune", "expect"),
)
_PRUNE_FIELDS = ("policy", "method", "keep_ratio", "max_visual_tokens", "score_mass", "alpha")
# The value each policy reads.
_POLICY_FIELDS = {
    Policy.KEEP_RATIO: "keep_ratio",
    Policy.TOKEN_BUDGET: "max_visual_tokens",
    Policy.SCORE_MASS: "score_mass",
}


@dataclass(frozen=True)
class ReplayQuestion:
    """One question and when to ask it.

    cameras: names; empty for all. A new frame of the first one is what gets an answer.
    at_s, until_s: seconds from the start of the recording, both included.
    max_rate_hz: 0 for every frame. expect: the true answer, None if not known.
    source: where it was read, for messages.
    """

    query: Query
    cameras: tuple[str, ...] = ()
    at_s: float = 0.0
    until_s: float = math.inf
    max_rate_hz: float = 0.0
    mode: str = STANDING
    expect: str | None = None
    source: str = ""


def load_questions(path: Path) -> tuple[ReplayQuestion, ...]:
    """Read a file of questions.

    Raises:
        ConfigError: missing or malformed; names the file, the entry and the field.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read questions from {path}: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ConfigError(
            f"{path}: expected a list of questions, each with `ask`; got"
            f" {'an empty list' if entries == [] else type(entries).__name__}"
        )
    questions: list[ReplayQuestion] = []
    for number, entry in enumerate(entries, start=1):
        source = f"{path}, entry {number}"
        question = _question(_Entry(entry, _FIELDS, source), number)
        query_id = question.query.query_id
        if query_id in (other.query.query_id for other in questions):
            raise ConfigError(f"{source}: query_id {query_id!r} is used by an earlier entry")
        questions.append(question)
    return tuple(questions)


def _question(entry: _Entry, number: int) -> ReplayQuestion:
    text = entry.text("ask")
    if not text.strip():
        raise entry.error("ask", text, "a question")
    mode = entry.text("mode", STANDING)
    if mode not in (ONCE, STANDING):
        raise entry.error("mode", mode, f"{ONCE} or {STANDING}")
    at_s = entry.number("at", 0.0)
    until_s = entry.number("until", math.inf)
    if until_s < at_s:
        raise entry.error("until", until_s, f"at least `at`, which is {at_s:g}")
    expect = entry.text("expect") if entry.has("expect") else None
    return ReplayQuestion(
        query=Query(
            text=text,
            query_id=entry.text("query_id") or f"q{number}",
            choices=entry.texts("choices"),
            max_new_tokens=entry.integer("max_new_tokens"),
            prune=_prune(entry),
        ),
        cameras=entry.texts("cameras"),
        at_s=at_s,
        until_s=until_s,
        max_rate_hz=entry.number("max_rate", 0.0),
        mode=mode,
        expect=expect,
        source=entry.source,
    )


def _prune(parent: _Entry) -> PruneSpec:
    entry = _Entry(parent.content.get("prune", {}), _PRUNE_FIELDS, f"{parent.source}, prune")
    return PruneSpec(
        policy=_policy(entry),
        method=entry.text("method"),
        keep_ratio=entry.number("keep_ratio", 1.0),
        max_visual_tokens=entry.integer("max_visual_tokens"),
        score_mass=entry.number("score_mass", 0.0),
        alpha=entry.number("alpha", 0.0) if entry.has("alpha") else None,
    )


def _policy(entry: _Entry) -> Policy:
    """The policy named, or the one whose value is given."""
    given = [policy for policy, name in _POLICY_FIELDS.items() if entry.has(name)]
    # YAML reads a bare `off` as False.
    name = "off" if entry.content.get("policy") is False else entry.text("policy")
    if not name:
        if len(given) > 1:
            fields = " and ".join(_POLICY_FIELDS[policy] for policy in given)
            raise ConfigError(f"{entry.source}: {fields} exclude each other; give one of them")
        return given[0] if given else Policy.NODE_DEFAULT
    # A latency budget depends on measured times, so its replay could not be repeated.
    known = {p.name.lower(): p for p in Policy if p is not Policy.LATENCY_BUDGET}
    if name.lower() not in known:
        raise entry.error("policy", name, f"one of {', '.join(known)}")
    policy = known[name.lower()]
    if policy in _POLICY_FIELDS and policy not in given:
        raise ConfigError(f"{entry.source}: policy {name} needs {_POLICY_FIELDS[policy]}")
    return policy


class _Entry:
    """Typed access to one mapping of the file; errors name the file, entry and field."""

    def __init__(self, content: Any, fields: tuple[str, ...], source: str) -> None:
        if not isinstance(content, Mapping):
            raise ConfigError(
                f"{source}: expected a mapping with {', '.join(fields)};"
                f" got {type(content).__name__}"
            )
        self.content = content
        self.source = source
        if unknown := [str(name) for name in content if name not in fields]:
            raise ConfigError(
                f"{source}: unknown field {', '.join(unknown)}; known: {', '.join(fields)}"
            )

    def has(self, name: str) -> bool:
        return name in self.content

    def error(self, name: str, value: object, allowed: str) -> ConfigError:
        return ConfigError(f"{self.source}: {name} is {value!r}; it must be {allowed}")

    def text(self, name: str, default: str = "") -> str:
        value = self.content.get(name, default)
        # A count, as in `expect: 3`, is a text too; yes, no and 1.0 would be guesses.
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise self.error(name, value, "a text (put it in quotes)")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.content.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(name, value, "a list of texts")
        return tuple(value)

    def number(self, name: str, default: float) -> float:
        value = self.content.get(name, default)
        # Written so that NaN, which fails every comparison, is refused too.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
            raise self.error(name, value, "a number, 0 or more")
        return float(value)

    def integer(self, name: str) -> int:
        value = self.content.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.error(name, value, "a whole number, 0 or more")
        return value
