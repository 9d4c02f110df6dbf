"""ROS parameters = ``PipelineConfig`` of the core + ``NodeSettings`` of the node.

Names, defaults, ranges and help texts stand in the two dataclasses; this module declares them,
reads them back and checks changes. It does not apply them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rclpy.node import Node
from rclpy.parameter import Parameter

from edge_atp.config import PipelineConfig, check_setting
from edge_atp.errors import ConfigError
from edge_atp.types import SourceRegion
from edge_atp_ros.cameras import BOTH, TRANSPORTS
from edge_atp_ros.declaring import declare
from edge_atp_ros.regions import WHOLE, parameter_name, parse_regions

# Everything else is settled when the node starts.
DYNAMIC = frozenset(
    {
        "method",
        "keep_ratio",
        "alpha",
        "latency_budget_ms",
        "max_new_tokens",
        "max_prompt_chars",
        "seed",
        "max_frame_age",
        "frame_wait",
        "sync_tolerance",
        "publish_scores",
    }
)


def _setting(default: Any, text: str, low: float | None = None, high: float | None = None) -> Any:
    return field(default=default, metadata={"help": text, "low": low, "high": high})


@dataclass(frozen=True)
class NodeSettings:
    """What the node needs to know beyond the pipeline."""

    cameras: tuple[str, ...] = _setting(("camera",), "names of the cameras, as questions use them")
    camera_topics: tuple[str, ...] = _setting(
        ("camera/image_raw",),
        "image topic of each camera; <topic>/compressed is its CompressedImage",
    )
    transport: str = _setting(BOTH, f"which images to subscribe to: {', '.join(TRANSPORTS)}")
    camera_depth: int = _setting(
        20, "images that DDS keeps per camera while the node is busy; the newest wins", 1, 100
    )
    max_frame_age: float = _setting(
        0.0, "oldest frame answered about, seconds by the ROS clock; 0: any age", 0.0, 86400.0
    )
    frame_wait: float = _setting(
        1.0, "longest wait for a camera's first frame, seconds after the question", 0.0, 60.0
    )
    sync_tolerance: float = _setting(
        0.1,
        "largest difference between the stamps of images used together, seconds; 0: the newest of"
        " each camera, whatever their stamps",
        0.0,
        60.0,
    )
    sync_history: int = _setting(
        30,
        "images of each camera, of its last second, kept to find some that match, where there are"
        " several cameras",
        1,
        1000,
    )
    queue_size: int = _setting(64, "questions that may wait; more are REJECTED", 1, 10_000)
    standing_questions: str = _setting(
        "", "YAML list of questions to ask of every frame from the start; empty: none"
    )
    max_standing_questions: int = _setting(32, "standing questions that may be held", 0, 1024)
    fair_every: int = _setting(
        4,
        "of so many turns in a row that a question had to wait for, the last is its, whatever its"
        " priority",
        2,
        1000,
    )
    stuck_after: float = _setting(
        30.0,
        "longest silence of the inference engine, seconds; then the node ends, to be started"
        " again by launch; 0: wait for ever",
        0.0,
        3600.0,
    )
    publish_scores: bool = _setting(True, "patch masks carry the score of every patch")
    autostart: bool = _setting(False, "configure and activate without a lifecycle manager")

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            check_setting(entry, getattr(self, entry.name))
        if self.transport not in TRANSPORTS:
            raise ConfigError(
                f"transport is {self.transport!r}; choose one of {', '.join(TRANSPORTS)}"
            )
        if len(self.cameras) != len(self.camera_topics):
            raise ConfigError(
                f"cameras names {len(self.cameras)} ({', '.join(self.cameras)}), camera_topics"
                f" {len(self.camera_topics)} ({', '.join(self.camera_topics)}); give one topic"
                " per camera"
            )
        if not all(self.cameras) or len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(
                f"cameras is {list(self.cameras)}; names must be unique and not empty"
            )


@dataclass(frozen=True)
class Settings:
    """All parameters of the node, validated.

    regions: of the cameras that questions are to look at in part.
    """

    pipeline: PipelineConfig
    node: NodeSettings
    regions: Mapping[str, SourceRegion] = field(default_factory=dict)

    def changed(self, parameters: Iterable[Parameter]) -> Settings:
        """These settings with some parameters changed; names of others are ignored.

        Raises:
            ConfigError: a value is out of range; names the parameter, the value and the range.
        """
        new = {parameter.name: parameter.value for parameter in parameters}
        return Settings(
            pipeline=dataclasses.replace(self.pipeline, **_known(PipelineConfig, new)),
            node=dataclasses.replace(self.node, **_known(NodeSettings, new)),
            regions=self._regions_with(new),
        )

    def _regions_with(self, new: Mapping[str, Any]) -> dict[str, SourceRegion]:
        kept = {
            camera: region
            for camera, region in self.regions.items()
            if parameter_name(camera) not in new
        }
        return kept | parse_regions(self.node.cameras, new)


def declare_all(node: Node) -> Settings:
    """Declare every parameter and read what was given at the start.

    Raises:
        StartError: a value is of the wrong type or out of its range.
        ConfigError: values contradict each other.
    """
    pipeline, settings = _declared(node, PipelineConfig), _declared(node, NodeSettings)
    names = [parameter_name(camera) for camera in settings.cameras]
    text = "part of the image to look at, [x, y, width, height] in pixels; all 0: the whole image"
    regions = {name: declare(node, name, WHOLE, text, read_only=False) for name in names}
    return Settings(pipeline, settings, parse_regions(settings.cameras, regions))


def _declared(node: Node, cls: type) -> Any:
    return cls(
        **{
            entry.name: declare(
                node,
                entry.name,
                entry.default,
                entry.metadata["help"],
                entry.metadata["low"],
                entry.metadata["high"],
                read_only=entry.name not in DYNAMIC,
            )
            for entry in dataclasses.fields(cls)
        }
    )


def _known(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    names = {entry.name for entry in dataclasses.fields(cls)}
    return {name: value for name, value in values.items() if name in names}
