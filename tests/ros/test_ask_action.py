"""The Ask action, with real action clients over DDS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from action_msgs.msg import GoalStatus
from action_msgs.srv import CancelGoal
from builtin_interfaces.msg import Duration
from edge_atp_msgs.action import Ask
from edge_atp_msgs.msg import Answer, Query
from faulty_node import ENDLESS, PROGRAM
from lifecycle_msgs.msg import Transition
from rclpy.action import ActionClient
from vlm_client import (
    QUESTION,
    VlmClient,
    assert_answers,
    bits,
    make_image,
    pattern,
    start_vlm_node,
)

COMPLETE = {Answer.STATUS_FINAL, Answer.STATUS_TRUNCATED}


@pytest.fixture(scope="module")
def node(start_module_process):
    return start_vlm_node(start_module_process, "queue_size:=8", program=PROGRAM)


@pytest.fixture(scope="module")
def ask(client):
    return Asker(client)


class Asker:
    """Sends goals and remembers what came back."""

    def __init__(self, client: VlmClient) -> None:
        self.client = client
        self.action = ActionClient(client.node, Ask, "/vlm_node/ask")
        client.wait(self.action.server_is_ready, "action server")
        client.settle()

    def send(self, text: str = QUESTION, images=(), **fields) -> Goal:
        goal = Goal(self.client)
        request = Ask.Goal(query=Query(text=text, **fields), images=list(images))
        sent = in_executor(
            self.client,
            lambda: self.action.send_goal_async(
                request, feedback_callback=lambda fed: goal.partials.append(fed.feedback.partial)
            ),
        )
        goal.handle = self.client.wait(sent.result, "goal response")
        if goal.handle.accepted:
            goal.outcome = in_executor(self.client, goal.handle.get_result_async)
        return goal

    def __call__(self, text: str = QUESTION, images=(), **fields) -> Goal:
        goal = self.send(text, images, **fields)
        goal.wait()
        return goal


class Goal:
    def __init__(self, client: VlmClient) -> None:
        self.client = client
        self.partials: list[Answer] = []

    def wait(self) -> Ask.Result:
        self.client.wait(self.outcome.done, "result")
        return self.result

    @property
    def result(self) -> Ask.Result:
        return self.outcome.result().result

    @property
    def answer(self) -> Answer:
        return self.result.answer

    @property
    def status(self) -> int:
        return self.outcome.result().status

    def begun(self) -> None:
        self.client.wait(lambda: self.partials, "first partial answer")

    def cancel(self) -> CancelGoal.Response:
        sent = in_executor(self.client, self.handle.cancel_goal_async)
        return self.client.wait(sent.result, "cancel response")


def in_executor(client: VlmClient, send: Callable[[], Any]) -> Any:
    """rclpy's action client loses a response that arrives while another thread still sends."""
    return client.wait(client.node.executor.create_task(send).result, "executor")


def finals_of(client: VlmClient, query_id: str) -> list[Answer]:
    """What was published on the answer topic by now, which may come after the goal's result."""
    client.answer_to(query_id)
    return [answer for answer in client.answers if answer.query_id == query_id]


def test_a_goal_about_a_live_camera_streams_its_answer(ask, client):
    image = make_image(pattern())
    client.show(image)
    goal = ask("describe the scene.")

    assert goal.status == GoalStatus.STATUS_SUCCEEDED
    assert_answers(client, goal.answer, image)  # the same answer and mask on the topics
    assert client.mask_of(goal.answer) == goal.result.masks
    assert client.answer_to(goal.answer.query_id) == goal.answer
    client.wait(lambda: len(goal.partials) > 1, "partial answers, on a topic of their own")
    texts = [partial.text for partial in goal.partials]
    assert texts == sorted(texts, key=len)
    assert goal.answer.text.startswith(texts[-1].rstrip("\ufffd"))
    assert {partial.status for partial in goal.partials} == {Answer.STATUS_PARTIAL}
    assert all(partial.header == image.header for partial in goal.partials)


def test_images_in_the_goal_are_answered_about_instead_of_the_camera(ask, client):
    client.show(make_image(pattern(seed=1)))
    image = make_image(pattern(seed=2), frame_id="wrist")
    goal = ask(images=[image])
    live = make_image(pattern(seed=2))
    same_picture = client.ask_about(live)

    assert goal.status == GoalStatus.STATUS_SUCCEEDED
    assert goal.answer.header == image.header
    assert goal.answer.cameras == ["images[0]"]
    assert goal.answer.text == same_picture.text
    (mask,) = goal.result.masks.masks
    (live_mask,) = client.mask_of(same_picture).masks
    assert mask.kept == live_mask.kept
    assert mask.header == image.header


def test_several_named_images_in_the_goal_keep_their_order(ask):
    images = [make_image(pattern(seed=n), frame_id=f"f{n}") for n in range(3)]
    goal = ask(images=images, cameras=["before", "after", "after"])

    assert goal.status == GoalStatus.STATUS_SUCCEEDED, goal.answer.error_msg
    assert goal.answer.cameras == ["before", "after", "after"]
    assert goal.answer.frame_stamps == [image.header.stamp for image in images]
    assert goal.answer.header == images[-1].header, "the newest"
    masks = goal.result.masks.masks
    assert [mask.header for mask in masks] == [image.header for image in images]
    assert goal.answer.tokens.visual_kept == sum(bits(mask).sum() for mask in masks)


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"text": " "}, Answer.ERROR_INVALID_QUERY, "text is empty"),
        ({"mode": Query.MODE_STANDING}, Answer.ERROR_INVALID_QUERY, "MODE_STANDING"),
        ({"cameras": ["periscope"]}, Answer.ERROR_INVALID_QUERY, "periscope"),
        ({"max_new_tokens": 100_000}, Answer.ERROR_INVALID_QUERY, "max_new_tokens"),
        (
            {"images": [make_image(pattern(), "jxl_12bit")]},
            Answer.ERROR_UNSUPPORTED_ENCODING,
            "jxl_12bit",
        ),
        (
            {"images": [make_image(pattern())] * 2, "cameras": ["a", "b", "c"]},
            Answer.ERROR_INVALID_QUERY,
            "brings 2",
        ),
        (
            {"images": [make_image(pattern())], "max_frame_age": Duration(sec=5)},
            Answer.ERROR_STALE_FRAME,
            "max_frame_age",
        ),
        ({"text": "fault: backend"}, Answer.ERROR_BACKEND, "illegal memory access"),
    ],
)
def test_a_goal_that_fails_is_aborted_with_the_reason(ask, client, fields, code, reason):
    client.show(make_image(pattern(seed=code)))
    goal = ask(**fields)

    assert goal.status == GoalStatus.STATUS_ABORTED
    assert (goal.answer.status, goal.answer.error_code) == (Answer.STATUS_ERROR, code)
    assert reason in goal.answer.error_msg
    assert not goal.result.masks.masks


def test_cancelling_ends_the_answer_between_tokens(ask, client):
    client.show(make_image(pattern()))
    whole = ask("describe the scene.")
    goal = ask.send(ENDLESS)
    goal.begun()
    response = goal.cancel()
    goal.wait()

    assert len(response.goals_canceling) == 1
    assert goal.status == GoalStatus.STATUS_CANCELED
    assert goal.answer.status == Answer.STATUS_CANCELED
    assert goal.answer.error_code == Answer.ERROR_NONE
    assert 0 < goal.answer.tokens.generated < whole.answer.tokens.generated
    assert finals_of(client, goal.answer.query_id) == [goal.answer]
    assert ask().status == GoalStatus.STATUS_SUCCEEDED


def test_a_goal_that_waits_is_cancelled_without_waiting_for_its_turn(ask, client):
    client.show(make_image(pattern()))
    running = ask.send(ENDLESS)
    running.begun()
    waiting = ask.send(QUESTION)
    waiting.cancel()
    waiting.wait()

    assert not running.outcome.done(), "the other goal goes on"
    assert waiting.status == GoalStatus.STATUS_CANCELED
    assert waiting.answer.status == Answer.STATUS_CANCELED
    assert not waiting.partials
    running.cancel()
    running.wait()
    assert len(finals_of(client, waiting.answer.query_id)) == 1


def test_a_finished_goal_cannot_be_cancelled(ask, client):
    client.show(make_image(pattern()))
    goal = ask()
    assert not goal.cancel().goals_canceling
    assert goal.status == GoalStatus.STATUS_SUCCEEDED


def test_goals_and_topic_questions_share_one_queue_by_priority(ask, client):
    """All complete, each exactly once, higher priorities first, the rest in order of arrival."""
    client.show(make_image(pattern()))
    blocker = ask.send(ENDLESS)
    blocker.begun()
    goals = [ask.send(QUESTION, query_id=f"goal-{n}") for n in range(2)]
    client.send(query_id="topic-0")
    client.send(query_id="topic-urgent", priority=5)
    client.wait(lambda: client.diagnostic("/vlm_node", "questions_waiting") == "4", "all four wait")
    urgent = ask.send(QUESTION, query_id="goal-urgent", priority=7)
    blocker.cancel()
    for goal in (*goals, urgent):
        goal.wait()
    ids = {"goal-0", "goal-1", "topic-0", "topic-urgent", "goal-urgent"}
    client.wait(lambda: ids <= {answer.query_id for answer in client.answers}, "all answers")
    order = [answer.query_id for answer in client.answers if answer.query_id in ids]

    assert order[:2] == ["goal-urgent", "topic-urgent"]
    assert order.index("goal-0") < order.index("goal-1")
    assert sorted(order) == sorted(ids), "each once"
    assert {goal.status for goal in (*goals, urgent)} == {GoalStatus.STATUS_SUCCEEDED}


def test_goals_beyond_the_queue_are_aborted_as_rejected(ask, client):
    client.show(make_image(pattern()))
    blocker = ask.send(ENDLESS)
    blocker.begun()
    goals = [ask.send(QUESTION) for _ in range(12)]  # the queue holds 8
    blocker.cancel()
    for goal in goals:
        goal.wait()
    statuses = [goal.status for goal in goals]

    assert statuses.count(GoalStatus.STATUS_SUCCEEDED) == 8
    rejected = [goal for goal in goals if goal.status == GoalStatus.STATUS_ABORTED]
    assert len(rejected) == 4
    assert {goal.answer.error_code for goal in rejected} == {Answer.ERROR_REJECTED}
    assert "queue is full" in rejected[0].answer.error_msg


def test_deactivating_ends_every_goal_and_inactive_nodes_reject(ask, client):
    client.show(make_image(pattern()))
    goals = [ask.send(ENDLESS) for _ in range(3)]
    goals[0].begun()
    assert client.change_state(Transition.TRANSITION_DEACTIVATE)
    for goal in goals:
        goal.wait()
        assert goal.status == GoalStatus.STATUS_ABORTED, "the client did not cancel"
        assert goal.answer.status == Answer.STATUS_CANCELED
        assert goal.answer.error_code == Answer.ERROR_REJECTED
        assert "deactivated" in goal.answer.error_msg
    assert not ask.send(QUESTION).handle.accepted

    assert client.change_state(Transition.TRANSITION_ACTIVATE)
    client.wait_until_active()
    client.show(make_image(pattern()))
    assert ask().status == GoalStatus.STATUS_SUCCEEDED


def test_an_interrupt_ends_every_goal_with_an_answer(ask, client, node):
    """Last in the module: it ends the node."""
    client.show(make_image(pattern()))
    goals = [ask.send(ENDLESS) for _ in range(2)]
    goals[0].begun()
    node.signal_group(2)
    for goal in goals:
        goal.wait()
        assert goal.answer.status == Answer.STATUS_CANCELED
    assert node.wait() == 0
    assert "Traceback" not in node.output()
