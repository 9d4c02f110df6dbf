"""The node's settings: checked as a whole, changed one at a time, and all of them documented."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_ros.parameters import DYNAMIC, NodeSettings, Settings
from rclpy.parameter import Parameter

from edge_atp.config import PipelineConfig
from edge_atp.errors import ConfigError
from edge_atp.types import SourceRegion

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "ros_ws/src/edge_atp_ros/README.md"
NAMES = [entry.name for cls in (PipelineConfig, NodeSettings) for entry in dataclasses.fields(cls)]


@pytest.fixture
def settings():
    cameras = NodeSettings(cameras=("left", "right"), camera_topics=("/l", "/r"))
    return Settings(PipelineConfig(), cameras)


def change(settings: Settings, **values: object) -> Settings:
    """With `__` in a name for a dot."""
    return settings.changed(
        [Parameter(name.replace("__", "."), value=value) for name, value in values.items()]
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_names_every_parameter_and_whether_it_can_be_changed(name):
    text = README.read_text(encoding="utf-8")
    assert f"`{name}`" in text
    assert (f"`{name}`*" in text) == (name in DYNAMIC)


def test_the_shipped_file_holds_parameters_that_exist():
    content = yaml.safe_load((ROOT / "launch/params/warehouse.yaml").read_text(encoding="utf-8"))
    given = content["/**/vlm_node"]["ros__parameters"]
    assert set(given) <= set(NAMES)
    assert NodeSettings(sync_tolerance=given["sync_tolerance"]).standing_questions == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sync_tolerance", -0.1),
        ("sync_tolerance", float("nan")),
        ("frame_wait", 61.0),
        ("fair_every", 1),
        ("max_standing_questions", -1),
        ("sync_history", 0),
        ("queue_size", True),
        ("standing_questions", 3),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(settings, name, value):
    with pytest.raises(ConfigError, match=name):
        change(settings, **{name: value})


def test_regions_are_changed_camera_by_camera(settings):
    one = change(settings, cameras__left__roi=[1, 2, 3, 4])
    both = change(one, cameras__right__roi=[5, 6, 7, 8], frame_wait=2.0)
    assert one.regions == {"left": SourceRegion(1, 2, 3, 4)}
    assert both.regions == one.regions | {"right": SourceRegion(5, 6, 7, 8)}
    assert both.node.frame_wait == 2.0
    assert change(both, cameras__left__roi=[0, 0, 0, 0]).regions == {
        "right": SourceRegion(5, 6, 7, 8)
    }
    with pytest.raises(ConfigError, match=r"cameras\.right\.roi is \[5, 6, 0, 8\]"):
        change(both, cameras__right__roi=[5, 6, 0, 8])
