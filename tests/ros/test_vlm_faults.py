"""Bad questions, bad images, bad parameters: each is answered, and the node lives on."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from builtin_interfaces.msg import Duration
from edge_atp_msgs.msg import Answer, PruneConfig
from sensor_msgs.msg import Image
from vlm_client import (
    assert_answers,
    make_compressed,
    make_image,
    pattern,
    start_vlm_node,
)

RATIO = PruneConfig.POLICY_KEEP_RATIO


@pytest.fixture(scope="module")
def node(start_module_process, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # A calibration that someone made on this machine must not be found.
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return start_vlm_node(start_module_process)


BAD_QUESTIONS = {
    "keep_ratio 0": ({"prune": {"policy": RATIO, "keep_ratio": 0.0}}, "prune.keep_ratio is 0"),
    "keep_ratio nan": ({"prune": {"policy": RATIO, "keep_ratio": float("nan")}}, "nan"),
    "keep_ratio -1": ({"prune": {"policy": RATIO, "keep_ratio": -1.0}}, "prune.keep_ratio is -1"),
    "keep_ratio 2": ({"prune": {"policy": RATIO, "keep_ratio": 2.0}}, "prune.keep_ratio is 2"),
    "alpha nan": ({"prune": {"policy": RATIO, "alpha": float("nan")}}, "prune.alpha"),
    "alpha 3": ({"prune": {"policy": RATIO, "alpha": 3.0}}, "prune.alpha is 3"),
    "policy 9": ({"prune": {"policy": 9}}, "prune.policy is 9"),
    "method": ({"prune": {"policy": RATIO, "method": "telepathy"}}, "telepathy"),
    "no tokens": ({"prune": {"policy": PruneConfig.POLICY_TOKEN_BUDGET}}, "max_visual_tokens"),
    "100 kB": ({"text": "why " * 25_000}, "max_prompt_chars"),
    "empty": ({"text": "   "}, "text is empty"),
    "camera": ({"cameras": ["periscope"]}, "this node has camera"),
    "same camera twice": ({"cameras": ["camera", "camera"]}, "twice"),
    "standing": ({"mode": 1}, "~/set_query"),
    "mode": ({"mode": 7}, "mode is 7"),
    "conversation": ({"conversation_id": "c" * 300}, "conversation_id has 300 characters"),
    "one choice": ({"choices": ["yes"]}, "choices has 1 entries"),
    "same choice twice": ({"choices": ["yes", "yes"]}, "yes"),
    "empty choice": ({"choices": ["yes", ""]}, "choices"),
    "max_new_tokens": ({"max_new_tokens": 100_000}, "max_new_tokens is 100000"),
}


@pytest.mark.parametrize("name", sorted(BAD_QUESTIONS))
def test_a_bad_question_is_answered_with_the_reason(client, name):
    fields, reason = BAD_QUESTIONS[name]
    answer = client.ask(**fields)

    assert answer.status == Answer.STATUS_ERROR
    assert answer.error_code == Answer.ERROR_INVALID_QUERY
    assert reason in answer.error_msg
    assert answer.text == ""


def bad_images() -> dict[str, tuple]:
    def image(**changes):
        message = make_image(pattern())
        for name, value in changes.items():
            setattr(message, name, value)
        return message

    truncated = image()
    truncated.data = truncated.data[:-1000]
    return {
        "unknown encoding": (image(encoding="jxl_12bit"), "jxl_12bit"),
        "depth": (image(encoding="32FC1"), "32FC1"),
        "truncated": (truncated, "truncated"),
        "step too small": (image(step=17), "step is 17"),
        "height too large": (image(height=481), "481"),
        "empty": (Image(encoding="rgb8", header=image().header), "empty"),
        "odd yuv width": (make_image(np.zeros((4, 5, 2), np.uint8), "uyvy"), "pairs"),
        "damaged jpeg": (make_compressed(b"\xff\xd8\xff\xe0 not a picture", "jpeg"), "truncated"),
        "no picture": (make_compressed(b"not a picture", "jpeg"), "neither JPEG nor PNG"),
        "no bytes": (make_compressed(b"", "png"), "empty"),
    }


@pytest.mark.parametrize("name", sorted(bad_images()))
def test_a_bad_image_is_answered_with_the_reason_and_the_node_lives_on(client, name):
    image, reason = bad_images()[name]
    answer = client.ask_about(image)

    assert answer.status == Answer.STATUS_ERROR
    assert answer.error_code == Answer.ERROR_UNSUPPORTED_ENCODING
    assert reason in answer.error_msg
    assert answer.header == image.header
    good = make_image(pattern())
    assert_answers(client, client.ask_about(good), good)


def test_random_bytes_on_any_input_leave_the_node_alive(client, node):
    """Not messages at all: the publisher hands over bytes as if they were serialized."""
    rng = np.random.default_rng(11)
    header = b"\0\1\0\0"
    for size in (0, 1, 4, 7, 40, 300, 5000):
        for publisher in (client.images, client.compressed, client.queries, client.texts):
            publisher.publish(header + rng.bytes(size))
    client.ask()
    good = make_image(pattern())
    assert_answers(client, client.ask_about(good), good)
    assert "Traceback" not in node.output()


def test_a_malformed_image_is_answered_with_the_reason(client):
    def refused() -> Answer | None:
        client.images.publish(b"\0\1\0\0" + bytes(3))  # best effort: it may be lost
        answer = client.ask()
        return answer if answer.error_code else None

    answer = client.wait(refused, "an answer about the malformed image")
    assert answer.error_code == Answer.ERROR_UNSUPPORTED_ENCODING
    assert "malformed Image message" in answer.error_msg


def test_keep_ratio_changes_while_running_and_bad_values_are_refused(client):
    client.show(make_image(pattern()))
    default = client.ask().tokens.visual_kept
    assert client.set_parameter("keep_ratio", 0.25).successful
    try:
        assert client.ask().tokens.visual_kept == 64
        for value in (2.0, 0.0, -0.5, float("nan")):
            result = client.set_parameter("keep_ratio", value)
            assert not result.successful
            assert "keep_ratio" in result.reason
        assert client.ask().tokens.visual_kept == 64, "the old value stays"
    finally:
        assert client.set_parameter("keep_ratio", -1.0).successful
    assert client.ask().tokens.visual_kept == default


BAD_VALUES = {
    "sync_tolerance": (-0.1, 61.0, float("nan")),
    "frame_wait": (-1.0, float("inf")),
    "max_frame_age": (-1.0,),
    "latency_budget_ms": (-1.0, 100.0),  # the second needs a calibration
    "cameras.camera.roi": ([1, 2, 3], [0, 0, -5, 5], [9, 9, 0, 9]),
}


@pytest.mark.parametrize("name", sorted(BAD_VALUES))
def test_a_value_out_of_range_is_refused_with_the_reason_and_the_old_one_stays(client, name):
    before = client.get_parameter(name)
    for value in BAD_VALUES[name]:
        result = client.set_parameter(name, value)
        assert not result.successful
        assert name in result.reason, result.reason
    assert client.get_parameter(name) == before


def test_without_a_calibration_a_latency_budget_says_how_to_make_one(client):
    budget = Duration(nanosec=50_000_000)
    prune = {"policy": PruneConfig.POLICY_LATENCY_BUDGET, "latency_budget": budget}
    answer = client.ask(prune=prune)
    assert answer.error_code == Answer.ERROR_INVALID_QUERY
    assert "--calibrate" in answer.error_msg


@pytest.mark.parametrize(("name", "value"), [("engine", "trt"), ("model", "other")])
def test_what_is_loaded_is_read_only(client, name, value):
    result = client.set_parameter(name, value)
    assert not result.successful
    assert "read-only" in result.reason


def test_an_unknown_method_is_refused_as_a_parameter(client):
    result = client.set_parameter("method", "telepathy")
    assert not result.successful
    assert "telepathy" in result.reason
