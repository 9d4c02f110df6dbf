"""edge_atp_msgs as a client meets it: defaults, constants, and the way over the wire."""

from __future__ import annotations

import math

import pytest

pytest.importorskip(
    "edge_atp_msgs", reason="needs the built workspace: run through scripts/with_ros"
)

from builtin_interfaces.msg import Time
from edge_atp_msgs.action import Ask
from edge_atp_msgs.msg import Answer, ModelInfo, PatchMask, PatchMaskArray, PruneConfig, Query
from edge_atp_msgs.srv import ListQueries, RemoveQuery, SetQuery
from rclpy.serialization import deserialize_message, serialize_message


def test_an_empty_query_asks_once_about_all_cameras_with_the_nodes_defaults():
    query = Query()

    assert query.mode == Query.MODE_ONCE
    assert list(query.cameras) == []
    assert query.max_new_tokens == 0
    assert query.prune.policy == PruneConfig.POLICY_NODE_DEFAULT
    assert query.prune.keep_ratio == 1.0
    assert query.prune.alpha < 0  # the node's default


@pytest.mark.parametrize("prefix", ["STATUS_", "ERROR_", "CONFIDENCE_"])
def test_the_constants_of_an_answer_are_distinct_and_without_gaps(prefix):
    values = [getattr(Answer, name) for name in dir(Answer) if name.startswith(prefix)]

    assert sorted(values) == list(range(len(values)))


@pytest.mark.parametrize("interface", [SetQuery, RemoveQuery, ListQueries])
def test_every_service_says_whether_and_why_not(interface):
    fields = interface.Response.get_fields_and_field_types()

    assert fields["success"] == "boolean"
    assert fields["error_code"] == "uint16"
    assert fields["error_msg"] == "string"


def test_an_answer_is_the_same_after_the_wire():
    answer = Answer(query_id="q1", sequence=2**40, cameras=["front", "left"])
    answer.header.frame_id = "camera_optical"
    answer.header.stamp = Time(sec=12, nanosec=345)
    answer.frame_stamps = [Time(sec=12, nanosec=345), Time(sec=11)]
    answer.status = Answer.STATUS_ERROR
    answer.error_code = Answer.ERROR_INVALID_QUERY
    answer.error_msg = "keep_ratio is nan: choose a value in (0, 1]"
    answer.text = "Kisten links: 3 \u2013 \u7bb1"
    answer.tokens.visual_total = 256
    answer.tokens.visual_kept = 64
    answer.latency.vision_encode = 0.25

    assert deserialize_message(serialize_message(answer), Answer) == answer


def test_goal_and_result_carry_images_and_masks():
    goal = Ask.Goal(query=Query(text="What is on the shelf?"))
    result = Ask.Result(masks=PatchMaskArray(masks=[PatchMask(kept=[0b1000_0001])]))

    assert deserialize_message(serialize_message(goal), Ask.Goal) == goal
    assert deserialize_message(serialize_message(result), Ask.Result) == result


def test_a_number_that_is_not_one_reaches_the_node():
    # The node has to refuse it; the message must not hide it.
    config = PruneConfig(policy=PruneConfig.POLICY_KEEP_RATIO, keep_ratio=math.nan)

    assert math.isnan(deserialize_message(serialize_message(config), PruneConfig).keep_ratio)


def test_model_info_has_no_default_that_could_pass_for_a_value():
    info = ModelInfo()

    assert info.model_id == info.backend == info.manifest_sha256 == ""
    assert info.max_prompt_chars == info.grid_rows == 0
