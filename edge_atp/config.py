"""Settings of the pipeline: this dataclass is the YAML file is the ROS parameter list.

Same names everywhere, validated once, here. ``field_help`` gives the text and range that the ROS
node and ``--help`` show.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from edge_atp.errors import ConfigError


def _setting(default: Any, text: str, low: float | None = None, high: float | None = None) -> Any:
    return field(default=default, metadata={"help": text, "low": low, "high": high})


@dataclass(frozen=True)
class PipelineConfig:
    """What a pipeline is made of and its defaults for questions that do not say otherwise."""

    model: str = _setting(
        "warehouse_tiny",
        "model directory, or a model shipped with the project: its name, or name:fp32, name:int8",
    )
    engine: str = _setting("auto", "inference backend: auto, ort (ort-cpu, ort-cuda) or trt")
    method: str = _setting(
        "",
        "pruning method, or cut+NAME behind the encoder's own cut; empty: the model's own default",
    )
    keep_ratio: float = _setting(
        -1.0, "share of visual tokens kept, (0, 1]; -1: the model's own default", -1.0, 1.0
    )
    alpha: float = _setting(
        -1.0,
        "weight of the question against saliency, [0, 1]; -1: the model's own default",
        -1.0,
        1.0,
    )
    latency_budget_ms: float = _setting(
        0.0,
        "keep as many tokens as a calibrated device answers within this time, milliseconds, in"
        " place of keep_ratio; 0: off",
        0.0,
        3_600_000.0,
    )
    calibration: str = _setting(
        "", "file of `edge-atp bench --calibrate`; empty: the usual place of this user"
    )
    max_new_tokens: int = _setting(48, "longest answer, tokens", 1, 4096)
    max_prompt_chars: int = _setting(2000, "longest question accepted, characters", 1, 100_000)
    num_threads: int = _setting(0, "CPU threads of the backend; 0: the backend decides", 0, 1024)
    seed: int = _setting(0, "seed of random methods", 0, 2**31 - 1)
    max_images: int = _setting(8, "most images in one question, earlier turns included", 1, 64)
    max_choices: int = _setting(64, "most answers in a closed answer set", 2, 1024)
    max_choice_chars: int = _setting(200, "longest answer of a closed set, characters", 1, 10_000)
    max_conversations: int = _setting(
        8, "conversations remembered; the one longest unused is forgotten first", 1, 1024
    )
    max_turns: int = _setting(8, "questions remembered of one conversation", 1, 256)
    conversation_age: float = _setting(
        600.0, "a conversation unused for this long is forgotten, seconds", 1.0, 86400.0
    )
    conversation_memory_mb: int = _setting(
        64, "memory of all conversations together, MiB; the oldest go first", 1, 65536
    )
    frame_tolerance: float = _setting(
        -1.0,
        "encode no frame that looks like the camera's last: -1 off, 0 identical pixels, 1 to 255"
        " largest difference on every 8th pixel of every 8th row",
        -1.0,
        255.0,
    )
    reuse_prefix: bool = _setting(
        True, "keep keys and values of the prompt's text before the first image"
    )

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            check_setting(entry, getattr(self, entry.name))
        for name in ("keep_ratio", "alpha"):
            value = getattr(self, name)
            if value < 0 and value != -1.0:
                raise ConfigError(f"{name} is {value:g}; use -1 for the model's own default")
        if -1.0 < self.frame_tolerance < 0.0:
            raise ConfigError(
                f"frame_tolerance is {self.frame_tolerance:g}; use -1 to encode every frame, 0 or"
                " more to reuse the encoding of an unchanged one"
            )
        if self.keep_ratio == 0:
            raise ConfigError("keep_ratio is 0; it must be in (0, 1], or -1 for the default")

    @classmethod
    def from_yaml(cls, path: Path | str) -> PipelineConfig:
        """Read settings from a YAML mapping; absent ones keep their defaults.

        Raises:
            ConfigError: the file is missing or malformed, a name is unknown, a value out of range.
        """
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot read settings from {path}: {error}") from error
        if not isinstance(content, dict):
            raise ConfigError(
                f"{path}: expected a mapping of settings, got {type(content).__name__}"
            )
        known = [entry.name for entry in dataclasses.fields(cls)]
        if unknown := [str(name) for name in content if name not in known]:
            raise ConfigError(
                f"{path}: unknown setting {', '.join(unknown)}; known: {', '.join(known)}"
            )
        return cls(**content)


def check_setting(entry: dataclasses.Field[Any], value: Any) -> None:
    """Check one setting's type and range against its dataclass field.

    Raises:
        ConfigError: names the setting, the value and what is allowed.
    """
    expected = type(entry.default)
    number = expected in (int, float)
    accepted = (int, float) if expected is float else (expected,)
    if not isinstance(value, accepted) or (number and isinstance(value, bool)):
        raise ConfigError(f"{entry.name} is {value!r}; expected {expected.__name__}")
    if not number:
        return
    low, high = entry.metadata["low"], entry.metadata["high"]
    # Written so that NaN, which fails every comparison, is refused too.
    if not low <= value <= high:
        raise ConfigError(f"{entry.name} is {value}; it must be in [{low:g}, {high:g}]")
