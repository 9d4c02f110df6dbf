"""Closed answer sets, conversations and latency budgets, as clients of the node meet them."""

from __future__ import annotations

import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from builtin_interfaces.msg import Duration
from edge_atp_msgs.msg import Answer, ModelInfo, PruneConfig
from rclpy.qos import DurabilityPolicy, QoSProfile
from vlm_client import QUESTION, assert_answers, make_image, pattern, start_vlm_node

from edge_atp import types
from edge_atp.cost_model import CostModel
from edge_atp.cost_model.store import write_calibration
from edge_atp.pipeline import Pipeline
from edge_atp.runtime.running import running

COMPLETE = {Answer.STATUS_FINAL, Answer.STATUS_TRUNCATED}
CHOICES = ["a box", "nothing", "a bottle"]


@pytest.fixture(scope="module")
def pipeline():
    pipeline = Pipeline.load()
    yield pipeline
    pipeline.close()


@pytest.fixture(scope="module")
def calibration(pipeline, tmp_path_factory):
    """A device that takes 10 ms, and 1 ms more for each token kept; corrected by what it took."""
    none = {"preprocess": (0.0,), "text": (0.0,), "select": (0.0,), "decode": (0.0, 0.0)}
    model = CostModel(
        identity=running(pipeline.engine.directory, pipeline.engine.backend),
        coefficients=none | {"vision": (10.0,), "project": (0.0, 1.0), "prefill": (0.0,) * 3},
        min_kept=8,
        max_kept=256,
        answer_tokens=4,
        method="atp",
    )
    return write_calibration(model, tmp_path_factory.mktemp("calibration") / "device.json")


@pytest.fixture(scope="module")
def node(start_module_process, calibration):
    return start_vlm_node(start_module_process, f"calibration:={calibration}")


def budget(milliseconds: int) -> dict:
    duration = Duration(nanosec=milliseconds * 1_000_000)
    return {"policy": PruneConfig.POLICY_LATENCY_BUDGET, "latency_budget": duration}


# First, before any answer corrects the prediction.
def test_a_latency_budget_picks_how_many_tokens_are_kept(client):
    image = make_image(pattern())
    client.show(image)
    kept = {}
    for milliseconds in (30, 60):
        answer = client.ask(prune=budget(milliseconds), choices=CHOICES)  # corrects nothing
        assert_answers(client, answer, image)
        kept[milliseconds] = answer.tokens.visual_kept
    assert kept == {30: 20, 60: 50}
    tiny = client.ask(prune=budget(1), choices=CHOICES)
    assert tiny.tokens.visual_kept == 8, "the fewest that were measured"


def test_the_default_latency_budget_is_a_parameter_and_is_announced(client):
    latched = QoSProfile(depth=5, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    infos = client.listen(ModelInfo, "/vlm_node/model_info", latched)
    client.show(make_image(pattern()))
    dense = client.ask(choices=CHOICES).tokens.visual_kept
    assert client.set_parameter("latency_budget_ms", 30.0).successful
    try:
        assert client.ask(choices=CHOICES).tokens.visual_kept == 20
        policy = PruneConfig.POLICY_LATENCY_BUDGET
        client.wait(lambda: infos and infos[-1].default_prune.policy == policy, "announced")
        assert infos[-1].default_prune.latency_budget == Duration(nanosec=30_000_000)
    finally:
        assert client.set_parameter("latency_budget_ms", 0.0).successful
    assert client.ask(choices=CHOICES).tokens.visual_kept == dense


def test_with_choices_the_answer_is_the_most_probable_one(client, pipeline):
    image = make_image(pattern())
    answer = client.ask_about(image, choices=CHOICES)
    expected = pipeline.answer(
        types.Query(QUESTION, choices=tuple(CHOICES)), [types.Frame(pattern())]
    )
    assert_answers(client, answer, image)
    assert answer.text == expected.text
    assert answer.confidence_kind == Answer.CONFIDENCE_CHOICE_PROB
    assert answer.confidence == pytest.approx(max(expected.choice_probs), abs=1e-3)


def test_without_choices_the_confidence_is_of_the_tokens(client):
    answer = client.ask_about(make_image(pattern()))
    assert answer.confidence_kind == Answer.CONFIDENCE_MEAN_TOKEN_PROB


def test_a_conversation_goes_on_about_the_same_frame_without_seeing_it_again(client):
    image = make_image(pattern())
    first = client.ask_about(image, conversation_id="talk")
    second = client.ask("where is the red box?", conversation_id="talk")
    alone = client.ask("where is the red box?")

    assert_answers(client, first, image)
    assert (second.status in COMPLETE, second.header) == (True, image.header)
    assert list(second.frame_stamps) == [image.header.stamp]
    assert client.mask_of(second).masks[0].header == image.header
    assert second.latency.vision_encode == 0
    assert second.tokens.prompt_text > alone.tokens.prompt_text, "the first question is in it"
    assert second.tokens.visual_total == 256


def test_a_conversation_takes_in_new_frames(client):
    client.ask_about(make_image(pattern(seed=1)), conversation_id="moving")
    image = make_image(pattern(seed=2))
    answer = client.ask_about(image, conversation_id="moving")
    assert (answer.status in COMPLETE, answer.header) == (True, image.header)
    assert answer.tokens.visual_total == 512, "both images are in it"
    (mask,) = client.mask_of(answer).masks
    assert mask.header == image.header


def test_conversations_do_not_hear_each_other(client):
    client.ask_about(make_image(pattern()), conversation_id="one")
    lonely = client.ask(conversation_id="two")
    assert lonely.tokens.prompt_text == client.ask().tokens.prompt_text


def test_a_conversation_survives_a_change_of_parameters(client):
    client.ask_about(make_image(pattern()), conversation_id="steady")
    assert client.set_parameter("max_new_tokens", 12).successful
    second = client.ask(conversation_id="steady")
    assert second.tokens.prompt_text > client.ask().tokens.prompt_text
