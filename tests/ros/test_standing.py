"""What is remembered of a standing question, as ListQueries reports it."""

from __future__ import annotations

import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from builtin_interfaces.msg import Time
from edge_atp_msgs.msg import Answer, Query
from edge_atp_ros import standing
from edge_atp_ros.questions import Question
from edge_atp_ros.standing import StandingQuestions
from edge_atp_ros.turns import Skips

from edge_atp import types
from edge_atp.errors import InvalidQueryError


class Desk:
    """Reception, worker and intake in one: accepts everything, remembers what it was told."""

    def __init__(self) -> None:
        self.held: dict[str, Question] = {}
        self.resumed: list[tuple[str, int]] = []

    def admit_standing(self, message: Query) -> Question:
        query = types.Query(message.text, message.query_id)
        return Question(query, ("front",), 0.0, max_frame_age_s=0.5, standing=True)

    def hold(self, question: Question) -> bool:
        replaced = question.query_id in self.held
        self.held[question.query_id] = question
        return replaced

    def release(self, query_id: str) -> int | None:
        return 7 if self.held.pop(query_id, None) else None

    def resume(self, query_id: str, sequence: int) -> None:
        self.resumed.append((query_id, sequence))

    def skips(self) -> dict[str, Skips]:
        return {query_id: Skips(offered=9, turns=4, own=2, others=3) for query_id in self.held}


@pytest.fixture
def desk():
    return Desk()


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(standing.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def questions(desk, clock):
    return StandingQuestions(desk, desk, desk, lambda: Time(sec=5))


def final(status: int, stamp: int = 0) -> Answer:
    answer = Answer(status=status)
    answer.header.stamp.sec = stamp
    return answer


def test_outcomes_are_counted_and_the_last_frame_is_kept(questions, desk):
    questions.set(Query(query_id="a", text="x"))
    for stamp, status in enumerate(
        (Answer.STATUS_FINAL, Answer.STATUS_TRUNCATED, Answer.STATUS_EXPIRED, Answer.STATUS_ERROR)
    ):
        questions.record(desk.held["a"], final(status, stamp))
    (status,) = questions.statuses()
    assert (status.answered, status.expired, status.failed) == (2, 1, 1)
    assert (status.last_header.stamp.sec, status.last_status) == (1, Answer.STATUS_ERROR)
    assert status.frames_dropped == 5
    assert status.accepted.sec == 5


def test_the_question_is_listed_as_accepted(questions):
    questions.set(Query(query_id="b", text="x"))
    questions.set(Query(query_id="a", text="y"))
    statuses = questions.statuses()
    assert [status.query.query_id for status in statuses] == ["a", "b"]
    assert list(statuses[0].query.cameras) == ["front"]
    assert statuses[0].query.max_frame_age.nanosec == 500_000_000


def test_the_rate_is_of_the_last_seconds(questions, desk, clock):
    questions.set(Query(query_id="a", text="x"))
    assert questions.statuses()[0].rate == 0.0
    for _ in range(5):
        questions.record(desk.held["a"], final(Answer.STATUS_FINAL))
        clock[0] += 0.5
    assert questions.statuses()[0].rate == pytest.approx(2.0)
    clock[0] += 10.0
    assert questions.statuses()[0].rate == 0.0


def test_the_last_answer_to_a_replaced_question_is_not_the_new_ones(questions, desk):
    questions.set(Query(query_id="a", text="x"))
    old = desk.held["a"]
    assert questions.set(Query(query_id="a", text="y")) == ("a", True)
    questions.record(old, final(Answer.STATUS_CANCELED))
    questions.record(desk.held["a"], final(Answer.STATUS_FINAL))
    (status,) = questions.statuses()
    assert (status.answered, status.last_status) == (1, Answer.STATUS_FINAL)


def test_a_removed_question_hands_on_its_count(questions, desk):
    questions.set(Query(query_id="a", text="x"))
    questions.remove("a")
    assert questions.statuses() == []
    assert desk.resumed == [("a", 7)]
    with pytest.raises(InvalidQueryError, match="'a'; the standing questions are: none"):
        questions.remove("a")
