"""Standing questions over DDS: set, listed, answered, shared, skipped, removed, and under load."""

from __future__ import annotations

import itertools
import signal
from typing import Any

import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from builtin_interfaces.msg import Duration
from edge_atp_msgs.msg import Answer, PruneConfig, Query
from edge_atp_msgs.srv import ListQueries, RemoveQuery, SetQuery
from lifecycle_msgs.msg import Transition
from vlm_client import QUESTION, VlmClient, make_image, pattern, start_vlm_node

COMPLETE = {Answer.STATUS_FINAL, Answer.STATUS_TRUNCATED}
FILE = """
- query_id: from_file
  text: what hazard is on the floor?
  max_rate: 5.0
  deadline: 20.0
  choices: [pallet, spill, nothing]
  prune: {policy: token_budget, max_visual_tokens: 40}
"""


@pytest.fixture(scope="module")
def node(start_module_process, tmp_path_factory):
    path = tmp_path_factory.mktemp("standing") / "questions.yaml"
    path.write_text(FILE)
    return start_vlm_node(
        start_module_process,
        f"standing_questions:={path}",
        "max_standing_questions:=4",
        "queue_size:=16",
        "max_new_tokens:=6",
    )


class StandingClient(VlmClient):
    """A client that also keeps standing questions."""

    def set(self, query_id: str = "", text: str = QUESTION, **fields: Any) -> Any:
        mode = fields.pop("mode", Query.MODE_STANDING)
        query = Query(query_id=query_id, text=text, mode=mode, **fields)
        return self.call(SetQuery, "set_query", SetQuery.Request(query=query))

    def remove(self, query_id: str) -> Any:
        request = RemoveQuery.Request(query_id=query_id)
        return self.call(RemoveQuery, "remove_query", request)

    def listed(self) -> dict[str, Any]:
        response = self.call(ListQueries, "list_queries", ListQueries.Request())
        assert response.success, response.error_msg
        return {status.query.query_id: status for status in response.queries}

    def answers_to(self, query_id: str, count: int, since: int = 0) -> list[Answer]:
        """Wait for ``count`` final answers beyond the first ``since``."""

        def found() -> list[Answer]:
            mine = [a for a in self.answers if a.query_id == query_id][since:]
            return mine if len(mine) >= count else []

        return self.wait(found, f"{count} answers to {query_id}")

    def show_one(self, **how: Any) -> Any:
        """Show the node an image of its own; returns it."""
        image = make_image(pattern(**how))
        self.show(image)
        return image


@pytest.fixture(scope="module")
def module_client(node):
    with StandingClient() as client:
        client.wait_until_active()
        yield client


@pytest.fixture
def client(module_client):
    """Only the question of the file stands before and after each test."""
    yield module_client
    for query_id in set(module_client.listed()) - {"from_file"}:
        assert module_client.remove(query_id).success


def test_the_questions_of_the_file_stand_from_the_start(client):
    listed = client.listed()
    assert list(listed) == ["from_file"]
    query = listed["from_file"].query
    assert (query.mode, list(query.cameras)) == (Query.MODE_STANDING, ["camera"])
    assert query.prune.policy == PruneConfig.POLICY_TOKEN_BUDGET

    image = client.show_one()
    answer = client.answers_to("from_file", 1)[0]
    assert answer.header == image.header
    assert answer.text in ("pallet", "spill", "nothing")
    assert answer.confidence_kind == Answer.CONFIDENCE_CHOICE_PROB
    assert answer.tokens.visual_kept == 40
    client.wait(lambda: client.listed()["from_file"].answered >= 1, "counted")


def test_each_frame_is_answered_about_once_in_order(client):
    assert client.set("each").success
    client.answers_to("each", 1)  # about the frame that was there
    images = []
    for number in range(4):
        images.append(client.show_one(seed=number))
        client.answers_to("each", number + 2)
    answers = client.answers_to("each", 5)
    assert [a.sequence for a in answers] == [0, 1, 2, 3, 4]
    assert [a.header for a in answers[1:]] == [image.header for image in images]
    assert {a.frames_dropped for a in answers} == {0}
    for answer in answers:
        assert client.mask_of(answer).header == answer.header
    status = client.listed()["each"]
    assert (status.answered, status.failed, status.frames_dropped) == (5, 0, 0)
    assert (status.last_status in COMPLETE, status.last_header) == (True, images[-1].header)


def test_questions_share_the_encoding_of_a_frame(client):
    for name in ("share-a", "share-b", "share-c"):
        assert client.set(name).success
    for name in ("share-a", "share-b", "share-c"):
        client.answers_to(name, 1)
    image = client.show_one(seed=7)
    answers = [client.answers_to(name, 2)[1] for name in ("share-a", "share-b", "share-c")]
    assert all(a.header == image.header for a in answers)
    from_file = [a for a in client.answers if a.header == image.header]
    assert sum(a.latency.vision_encode > 0 for a in from_file) == 1, "encoded once, for all"
    assert len({a.text for a in answers}) == 1


def test_skipped_frames_show_as_a_gap_and_are_counted(client):
    assert client.set("gaps").success
    before = client.answers_to("gaps", 1)[-1]
    images = [make_image(pattern(64, 64)) for _ in range(40)]
    for image in images:  # faster than anyone can answer
        client.images.publish(image)
    last = client.show_one()
    client.wait(
        lambda: any(a.query_id == "gaps" and a.header == last.header for a in client.answers),
        "the newest frame is answered about",
    )
    answers = [a for a in client.answers if a.query_id == "gaps" and a.sequence >= before.sequence]
    for earlier, later in itertools.pairwise(answers):
        assert later.sequence == earlier.sequence + 1 + later.frames_dropped
        assert later.header.stamp.sec > earlier.header.stamp.sec
    dropped = sum(a.frames_dropped for a in answers)
    assert dropped > 0
    status = client.listed()["gaps"]
    assert status.frames_dropped == dropped
    assert answers[-1].sequence + 1 == status.answered + status.frames_dropped


def test_the_rate_is_an_upper_bound(client):
    assert client.set("slow", max_rate=0.001).success
    client.answers_to("slow", 1)
    assert client.set("every").success
    client.answers_to("every", 1)
    for number in range(3):
        client.show_one(seed=number)
        client.answers_to("every", number + 2)
    assert len([a for a in client.answers if a.query_id == "slow"]) == 1
    assert client.listed()["slow"].frames_dropped == 0, "frames before their time are not offered"


def test_replacing_keeps_the_id_and_the_count(client):
    client.show_one()
    first = client.set("again")
    client.answers_to("again", 1)
    second = client.set("again", text="where is the red box?")
    assert (first.success, first.replaced) == (True, False)
    assert (second.success, second.replaced) == (True, True)
    answers = client.answers_to("again", 2)
    assert answers[1].sequence == 1
    assert client.listed()["again"].query.text == "where is the red box?"


def test_an_empty_id_is_assigned(client):
    response = client.set("")
    assert response.success
    assert response.query_id in client.listed()


def test_a_removed_question_is_silent_and_its_id_is_free(client):
    assert client.set("gone").success
    client.answers_to("gone", 1)
    assert client.remove("gone").success
    client.show_one()
    client.send(query_id="gone")
    answers = client.answers_to("gone", 2)
    assert [a.sequence for a in answers] == [0, 1], "a question asked once may use it"
    missing = client.remove("gone")
    assert (missing.success, missing.error_code) == (False, Answer.ERROR_INVALID_QUERY)
    assert "from_file" in missing.error_msg


BAD = {
    "once": ({"mode": Query.MODE_ONCE}, Answer.ERROR_INVALID_QUERY, "~/query"),
    "rate": ({"max_rate": -1.0}, Answer.ERROR_INVALID_QUERY, "max_rate is -1"),
    "camera": ({"cameras": ["periscope"]}, Answer.ERROR_INVALID_QUERY, "periscope"),
    "text": ({"text": " "}, Answer.ERROR_INVALID_QUERY, "text is empty"),
    "choices": ({"choices": ["a"]}, Answer.ERROR_INVALID_QUERY, "choices has 1"),
    "conversation": ({"conversation_id": "c"}, Answer.ERROR_INVALID_QUERY, "conversation_id"),
    "method": (
        {"prune": PruneConfig(method="telepathy")},
        Answer.ERROR_INVALID_QUERY,
        "telepathy",
    ),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_standing_question_changes_nothing(client, name):
    fields, code, reason = BAD[name]
    response = client.set("bad", **fields)
    assert (response.success, response.error_code) == (False, code)
    assert reason in response.error_msg
    assert "bad" not in client.listed()


def test_no_more_are_held_than_allowed(client):
    for number in range(3):
        assert client.set(f"many-{number}").success
    refused = client.set("one too many")
    assert (refused.success, refused.error_code) == (False, Answer.ERROR_REJECTED)
    assert "max_standing_questions" in refused.error_msg


# Ids ----------------------------------------------------------------------------------------


def test_a_duplicate_of_a_held_id_cannot_be_taken_for_the_answer(client, node):
    """Exactly one final answer to the question; the copies are told apart by code and number."""
    client.show_one()
    # However slow this side is, the copies reach a node that is still busy: it is held meanwhile.
    node.signal_group(signal.SIGSTOP)
    for _ in range(12):
        client.send("describe the scene.", priority=100)
    for _ in range(3):
        client.send(query_id="twin")
    node.signal_group(signal.SIGCONT)

    def mine() -> list[Answer]:
        return [a for a in client.answers if a.query_id == "twin"]

    client.wait(lambda: len(mine()) == 3, "three replies")
    in_use = [a for a in mine() if a.error_code == Answer.ERROR_ID_IN_USE]
    finals = [a for a in mine() if a.error_code != Answer.ERROR_ID_IN_USE]
    # A copy that comes after the answer is a new question.
    assert [a.sequence for a in finals] == list(range(len(finals)))
    assert all(a.status in COMPLETE for a in finals)
    assert in_use, "they came within one answer's time"
    assert {(a.status, a.sequence) for a in in_use} == {(Answer.STATUS_ERROR, 2**64 - 1)}
    assert "not the answer" in in_use[0].error_msg


def test_a_question_asked_once_may_not_use_a_standing_questions_id(client):
    client.send(query_id="from_file")
    answer = client.wait(
        lambda: [
            a
            for a in client.answers
            if a.query_id == "from_file" and a.error_code == Answer.ERROR_ID_IN_USE
        ],
        "refusal",
    )[0]
    assert answer.sequence == 2**64 - 1


# Deadlines and overload ---------------------------------------------------------------------


def test_a_deadline_that_cannot_be_met_is_given_up_before_any_work(client):
    client.show_one()
    # From these, and no other test's, the node learns how long such an answer takes.
    text = "describe what you see."
    latencies = [client.ask(text).latency for _ in range(4)]
    shortest_s = min(latency.total - latency.queue_wait for latency in latencies)
    answer = client.ask(text, deadline=Duration(nanosec=int(shortest_s * 5e8)))
    assert (answer.status, answer.error_code) == (Answer.STATUS_EXPIRED, Answer.ERROR_TIMEOUT)
    assert "deadline" in answer.error_msg
    assert answer.tokens.generated == answer.latency.prefill == 0


def test_a_standing_question_past_its_deadline_expires_and_is_counted(client):
    assert client.set("hasty", deadline=Duration(nanosec=1000)).success
    answer = client.answers_to("hasty", 1)[0]
    assert (answer.status, answer.error_code) == (Answer.STATUS_EXPIRED, Answer.ERROR_TIMEOUT)
    client.wait(lambda: client.listed()["hasty"].expired >= 1, "counted")


def test_under_overload_everyone_is_served_and_the_node_still_lists(client):
    """Twice the queue's size at once, again and again, with frames coming in between."""
    assert client.set("high", priority=200).success
    assert client.set("low").success
    asked: list[str] = []
    started = {name: len([a for a in client.answers if a.query_id == name]) for name in ("low",)}
    for round_number in range(4):
        client.show_one(seed=round_number)
        asked += [client.send(priority=100) for _ in range(32)]
        assert {"from_file", "high", "low"} <= set(client.listed())
    finals = [client.answer_to(query_id) for query_id in asked]
    codes = {answer.error_code for answer in finals}
    assert codes <= {Answer.ERROR_NONE, Answer.ERROR_REJECTED}
    assert Answer.ERROR_NONE in codes
    client.answers_to("low", 1, since=started["low"])
    client.ask()  # answered last: second answers would have come before
    ids = [a.query_id for a in client.answers if a.query_id in set(asked)]
    assert sorted(ids) == sorted(asked), "exactly one final answer each"


# Life cycle: last, because it ends the module's node in another state -------------------------


def test_standing_questions_survive_deactivation_and_end_with_cleanup(client):
    assert client.set("survivor").success
    client.answers_to("survivor", 1)
    assert client.change_state(Transition.TRANSITION_DEACTIVATE)
    assert set(client.listed()) == {"from_file", "survivor"}
    assert client.set("while inactive").success
    assert client.change_state(Transition.TRANSITION_ACTIVATE)
    client.wait_until_active()
    image = client.show_one(seed=3)
    for name in ("survivor", "while inactive"):
        client.wait(
            lambda name=name: any(
                a.query_id == name and a.header == image.header for a in client.answers
            ),
            f"{name} is answered again",
        )
    assert client.change_state(Transition.TRANSITION_DEACTIVATE)
    assert client.change_state(Transition.TRANSITION_CLEANUP)
    refused = client.set("too early")
    assert (refused.success, refused.error_code) == (False, Answer.ERROR_REJECTED)
    assert "not configured" in refused.error_msg
    assert client.change_state(Transition.TRANSITION_CONFIGURE)
    assert set(client.listed()) == {"from_file"}
