"""edge_atp_ros.client against a scripted VLM node: from threads, callbacks and coroutines."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError

import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

import rclpy
from edge_atp_msgs.msg import Answer, Query
from edge_atp_ros.client import (
    AnswerGuard,
    ClientError,
    ClosedError,
    IncompleteAnswerError,
    LowConfidenceError,
    NoAnswerError,
    RefusedAnswerError,
    StaleAnswerError,
    VlmClient,
    WrongFrameError,
)
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.context import Context
from rclpy.executors import MultiThreadedExecutor, SingleThreadedExecutor
from scripted_vlm import FRAME_ID, ScriptedVlm
from waiting import PATIENCE_S, wait_until

WHERE = "where is the red box?"
PLACE = "middle shelf, slot 3"
WAIT_S = PATIENCE_S


@pytest.fixture(scope="module")
def scripted():
    vlm = ScriptedVlm()
    yield vlm
    vlm.close()


@pytest.fixture
def vlm(scripted):
    """The scripted node, as new."""
    scripted.texts, scripted.age_s = {WHERE: PLACE}, 0
    scripted.fields = {"status": Answer.STATUS_FINAL, "confidence": 0.9}
    scripted.silent, scripted.with_masks = False, True
    scripted.queries.clear()
    scripted.removed.clear()
    return scripted


@pytest.fixture(scope="module")
def planner_node():
    context = Context()
    rclpy.init(context=context)
    node = rclpy.create_node("planner", context=context)
    yield node
    node.destroy_node()
    rclpy.shutdown(context=context)


@pytest.fixture(scope="module")
def shared(scripted, planner_node):
    with VlmClient(planner_node, timeout_s=WAIT_S) as client:
        wait_until(client.ready)
        yield client


@pytest.fixture
def client(vlm, shared):
    return shared


def test_an_answer_comes_with_its_mask_and_its_question(client, vlm):
    reply = client.ask(WHERE, cameras=["camera"], priority=3)

    assert (reply.text, reply.question) == (PLACE, WHERE)
    assert reply.confidence == pytest.approx(0.9)
    assert reply.masks.query_id == reply.query_id
    assert reply.masks.header == reply.answer.header
    (query,) = vlm.queries
    assert (query.query_id, list(query.cameras), query.priority) == (reply.query_id, ["camera"], 3)


def test_choices_travel_with_the_question(client, vlm):
    vlm.texts["is it empty?"] = "yes"
    assert client.ask_choice("is it empty?", ["yes", "no"]).text == "yes"
    assert list(vlm.queries[0].choices) == ["yes", "no"]


@pytest.mark.parametrize("executor_type", [SingleThreadedExecutor, MultiThreadedExecutor])
def test_a_callback_of_any_executor_may_wait_for_an_answer(client, planner_node, executor_type):
    """With a nested spin, or an answer subscription of the planner's own, this would hang."""
    texts, done = [], threading.Event()

    def look() -> None:
        timer.cancel()
        texts.append(client.ask(WHERE).text)
        done.set()

    timer = planner_node.create_timer(0.01, look)
    spin_until(planner_node, executor_type, done)
    planner_node.destroy_timer(timer)
    assert texts == [PLACE]


def test_a_coroutine_may_await_an_answer(client, planner_node):
    texts, done = [], threading.Event()

    async def look() -> None:
        timer.cancel()
        first = await client.ask_async(WHERE)
        second = await client.ask_choice_async(WHERE, [PLACE, "not found"])
        texts.extend([first.text, second.text])
        done.set()

    timer = planner_node.create_timer(0.01, look, callback_group=ReentrantCallbackGroup())
    spin_until(planner_node, SingleThreadedExecutor, done)
    planner_node.destroy_timer(timer)
    assert texts == [PLACE, PLACE]


def spin_until(node, executor_type, done: threading.Event) -> None:
    executor = executor_type(context=node.context)
    executor.add_node(node)
    end = time.monotonic() + WAIT_S
    while not done.is_set():
        assert time.monotonic() < end, "no answer: the executor is blocked"
        executor.spin_once(timeout_sec=0.05)
    executor.remove_node(node)
    executor.shutdown()


def test_many_threads_get_each_their_own_answer(client, vlm):
    questions = [f"question {n}?" for n in range(40)]
    vlm.texts |= {question: f"answer to {question}" for question in questions}
    replies = {}

    def ask(question: str) -> None:
        replies[question] = client.ask(question)

    threads = [threading.Thread(target=ask, args=(question,)) for question in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)

    assert {question: reply.text for question, reply in replies.items()} == {
        question: f"answer to {question}" for question in questions
    }
    assert all(reply.masks.query_id == reply.query_id for reply in replies.values())


@pytest.mark.parametrize(
    ("fields", "age_s", "guard", "error", "reason"),
    [
        ({}, 60, AnswerGuard(max_age_s=2), StaleAnswerError, "s old, more than 2 s"),
        ({}, -60, AnswerGuard(max_age_s=2), StaleAnswerError, "s ahead of this clock"),
        ({"confidence": 0.1}, 0, AnswerGuard(min_confidence=0.5), LowConfidenceError, "0.10 is be"),
        ({}, 0, AnswerGuard(frame_id="tool0"), WrongFrameError, f"{FRAME_ID!r}, not 'tool0'"),
        ({}, 0, AnswerGuard(cameras=("wrist",)), WrongFrameError, "camera camera, not wrist"),
        ({"status": Answer.STATUS_TRUNCATED}, 0, AnswerGuard(), IncompleteAnswerError, "cut off"),
        ({"status": Answer.STATUS_EXPIRED}, 0, AnswerGuard(), IncompleteAnswerError, "deadline"),
        (
            {"status": Answer.STATUS_ERROR, "error_code": 3, "error_msg": "no image yet"},
            0, AnswerGuard(), RefusedAnswerError, "no image yet",
        ),
    ],
)  # fmt: skip
def test_what_must_not_be_acted_upon_is_refused(client, vlm, fields, age_s, guard, error, reason):
    vlm.fields, vlm.age_s = vlm.fields | fields, age_s

    with pytest.raises(error, match=reason) as caught:
        client.ask(WHERE, guard=guard)
    assert caught.value.reply.answer.query_id == vlm.queries[0].query_id
    assert client.ask(WHERE, guard=None).answer.status == vlm.fields["status"]


def test_a_frame_from_before_the_moment_that_counts_is_refused(client):
    before_ns = client.now_ns()
    reply = client.ask(WHERE, newer_than_ns=before_ns)
    with pytest.raises(StaleAnswerError, match="before the moment"):
        client.ask(WHERE, newer_than_ns=reply.stamp_ns + 3_600_000_000_000)


def test_the_node_is_told_the_guards_limit(client, vlm):
    client.ask(WHERE, guard=AnswerGuard(max_age_s=90.5))
    client.ask(WHERE, guard=AnswerGuard(max_age_s=90.5), max_frame_age_s=0.25)
    ages = [q.max_frame_age.sec + q.max_frame_age.nanosec / 1e9 for q in vlm.queries]
    assert ages == [90.5, 0.25]


def test_without_its_mask_an_answer_waits_a_moment_and_then_counts_if_it_may(client, vlm):
    vlm.with_masks = False
    assert client.ask(WHERE).masks is None
    with pytest.raises(WrongFrameError, match="mask did not arrive"):
        client.ask(WHERE, guard=AnswerGuard(needs_masks=True))


def test_silence_ends_with_an_error_that_names_the_question(client, vlm):
    vlm.silent = True
    with pytest.raises(NoAnswerError, match="no answer to 'where is the red box"):
        client.ask(WHERE, timeout_s=0.2)
    wait_until(lambda: vlm.queries, "the question's arrival")  # or it is the next test's


def test_a_question_to_nobody_says_where_nobody_listens(planner_node):
    with VlmClient(planner_node, vlm="/elsewhere/vlm") as client:
        assert not client.ready()
        with pytest.raises(NoAnswerError, match="listened on /elsewhere/vlm/query"):
            client.ask(WHERE, timeout_s=0.2)


def test_closing_ends_every_wait(vlm, planner_node):
    vlm.silent = True
    client = VlmClient(planner_node)
    pending = client.ask_async(WHERE)
    cancelled = client.ask_async(WHERE)
    assert cancelled.cancel()
    wait_until(lambda: vlm.queries, "a question's arrival")
    client.close()

    with pytest.raises(ClosedError):
        pending.result(timeout=WAIT_S)
    with pytest.raises(CancelledError):
        cancelled.result(timeout=WAIT_S)
    with pytest.raises(ClosedError):
        client.ask(WHERE)
    client.close()


def test_a_subscriber_hears_what_passes_the_guard(client, vlm):
    heard, refused, all_of_them = [], [], []
    guard = AnswerGuard(min_confidence=0.5)
    ends = [
        client.subscribe(heard.append, query_id="s", guard=guard, on_unusable=refused.append),
        client.subscribe(all_of_them.append),
        client.subscribe(lambda reply: 1 / 0),  # its bug is its own
    ]
    vlm.say("s", "one", 1)
    vlm.say("other", "two", 1)
    wait_until(lambda: len(all_of_them) == 2)
    vlm.fields["confidence"] = 0.2
    vlm.say("s", "three", 2)
    wait_until(lambda: refused)
    for end in ends:
        end()
    vlm.say("s", "four", 3)
    client.ask(WHERE)

    assert [reply.text for reply in heard] == ["one"]
    assert heard[0].masks.sequence == 1
    assert isinstance(refused[0], LowConfidenceError)
    assert [reply.text for reply in all_of_them] == ["one", "two", "three"]


def test_a_standing_question_is_set_heard_and_withdrawn(client, vlm):
    heard = []
    guard = AnswerGuard(max_age_s=90.5)
    name = client.stand(WHERE, max_rate_hz=2.0, choices=[PLACE, "not found"], guard=guard)
    end = client.subscribe(heard.append, query_id=name, guard=guard)
    vlm.say(name, PLACE, 1)
    wait_until(lambda: heard)
    end()
    client.withdraw(name)

    (query,) = vlm.queries
    assert (name, query.text, query.max_rate) == ("assigned", WHERE, 2.0)
    assert query.mode == Query.MODE_STANDING
    assert (list(query.choices), query.max_frame_age.sec) == ([PLACE, "not found"], 90)
    assert heard[0].masks is not None
    assert vlm.removed == ["assigned"]
    assert client.stand(WHERE, query_id="floor") == "floor"


def test_a_refused_standing_question_says_why(client, planner_node):
    with pytest.raises(ClientError, match="/vlm_node/set_query refused: text is empty"):
        client.stand("")
    with (
        VlmClient(planner_node, vlm="elsewhere", timeout_s=0.3) as other,
        pytest.raises(NoAnswerError, match="no service /elsewhere/set_query"),
    ):
        other.stand(WHERE)


def test_waiting_in_the_clients_own_thread_is_an_error_and_no_deadlock(client, vlm):
    caught, chained = [], []

    def hear(reply) -> None:
        try:
            client.ask(WHERE)
        except ClientError as error:
            caught.append(str(error))
        client.ask_async(WHERE).add_done_callback(lambda done: chained.append(done.result().text))

    end = client.subscribe(hear, query_id="s")
    vlm.say("s", "one")
    wait_until(lambda: chained)
    end()
    assert "ask_async() does not" in caught[0]
    assert chained == [PLACE]
