"""One line per refused question, one a second of a flood, and none that nobody hears of."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_msgs.msg import Answer
from edge_atp_ros.questions import Question
from edge_atp_ros.refusal_log import RefusalLog
from edge_atp_ros.refusals import NoFrameError, RejectedError
from waiting import wait_until

from edge_atp.types import Query


class Lines:
    """Stands for the node's logger."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.errors: list[str] = []
        self.warning, self.error = self.warnings.append, self.errors.append


class Refusals:
    """A log whose seconds end when the test says so."""

    def __init__(self) -> None:
        self.lines = Lines()
        self.periods_s: list[float] = []
        self.waiting: list[Callable[[], None]] = []
        self.log = RefusalLog(self.lines, self._later)

    def refuse(self, query_id: str, error: BaseException, standing: bool = False) -> None:
        question = Question(Query("?", query_id=query_id), ("c",), 0.0, standing=standing)
        message = Answer(query_id=query_id, status=Answer.STATUS_ERROR, error_msg=str(error))
        self.log.write(question, error, message)

    def reject(self, *query_ids: str) -> None:
        for query_id in query_ids:
            self.refuse(query_id, RejectedError("the queue is full"))

    def end_period(self) -> None:
        self.waiting.pop()()

    def logged(self) -> list[tuple[str, int]]:
        """Each line's question, and how many more it stands for."""
        return [read_line(line) for line in self.lines.warnings]

    def _later(self, seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        self.periods_s.append(seconds)
        self.waiting.append(call)
        return lambda: self.waiting.remove(call)


def read_line(line: str) -> tuple[str, int]:
    held_back = line.partition(" held_back=")[2]
    return line.split()[0].removeprefix("query_id="), int(held_back or 0)


@pytest.fixture
def refusals():
    return Refusals()


def test_a_flood_gets_a_line_a_second_that_says_how_many_it_stands_for(refusals):
    refusals.reject("q0", "q1", "q2", "q3", "q4")
    refusals.refuse("q5", NoFrameError("no image yet"), standing=True)
    assert refusals.logged() == [("q0", 0)]

    refusals.end_period()
    refusals.reject("q6", "q7")
    assert refusals.logged() == [("q0", 0), ("q5", 4)]
    refusals.end_period()

    assert refusals.logged() == [("q0", 0), ("q5", 4), ("q7", 1)]
    assert 'error_msg="the queue is full"' in refusals.lines.warnings[0]
    assert set(refusals.periods_s) == {1.0}


def test_the_last_of_a_flood_is_written_when_its_second_is_over_and_nothing_waits_then(refusals):
    refusals.reject("q0", "q1")
    refusals.end_period()
    assert refusals.logged() == [("q0", 0), ("q1", 0)]
    refusals.end_period()
    assert refusals.waiting == []

    refusals.reject("q2")
    assert refusals.logged()[2:] == [("q2", 0)], "at once"


def test_what_is_held_back_is_written_when_the_node_stops(refusals):
    refusals.reject("q0", "q1", "q2", "q3")
    refusals.log.flush()
    assert refusals.logged() == [("q0", 0), ("q3", 2)]
    assert refusals.waiting == [], "the second is called off"

    refusals.log.flush()
    refusals.reject("q4")
    assert refusals.logged()[2:] == [("q4", 0)], "the node is active again"


def test_a_second_ends_by_itself():
    lines = Lines()
    refusals = Refusals()
    refusals.log = RefusalLog(lines)
    refusals.reject("q0", "q1", "q2")
    wait_until(lambda: sum(1 + others for _, others in map(read_line, lines.warnings)) == 3)
    assert [read_line(line)[0] for line in lines.warnings][-1] == "q2"


def test_other_refusals_are_logged_one_by_one(refusals):
    for number in range(3):
        refusals.refuse(f"q{number}", NoFrameError("no image yet"))
    assert refusals.logged() == [("q0", 0), ("q1", 0), ("q2", 0)]


def test_what_nobody_foresaw_is_logged_with_its_traceback(refusals):
    try:
        raise ZeroDivisionError("division by zero")
    except ZeroDivisionError as error:
        refusals.refuse("q0", error, standing=True)
    (line,) = refusals.lines.errors
    assert line.startswith("query_id=q0")
    assert "ZeroDivisionError: division by zero" in line
    assert "Traceback" in line


def test_where_no_thread_is_to_be_had_every_line_is_written():
    lines = Lines()

    def no_thread(seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("can't start new thread")

    log = RefusalLog(lines, no_thread)
    for query_id in ("a", "b"):
        message = Answer(query_id=query_id, status=Answer.STATUS_ERROR)
        log.write(Question(Query("?", query_id=query_id), ("c",), 0.0), RejectedError("?"), message)
    assert [read_line(line) for line in lines.warnings] == [("a", 0), ("b", 0)]
