"""One line per refused question, one a second of a flood, and none without its reason."""

from __future__ import annotations

import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_msgs.msg import Answer
from edge_atp_ros.questions import Question
from edge_atp_ros.refusal_log import RefusalLog
from edge_atp_ros.refusals import NoFrameError, RejectedError

from edge_atp.types import Query


class Lines:
    """Stands for the node's logger."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.errors: list[str] = []
        self.warning, self.error = self.warnings.append, self.errors.append


class Refusals:
    def __init__(self) -> None:
        self.lines, self.now_s = Lines(), 100.0
        self._log = RefusalLog(self.lines, lambda: self.now_s)

    def refuse(self, query_id: str, error: BaseException, standing: bool = False) -> None:
        question = Question(Query("?", query_id=query_id), ("c",), 0.0, standing=standing)
        message = Answer(query_id=query_id, status=Answer.STATUS_ERROR, error_msg=str(error))
        self._log.write(question, error, message)

    def logged(self) -> list[str]:
        return [line.split()[0].removeprefix("query_id=") for line in self.lines.warnings]


def test_a_flood_gets_a_line_a_second_that_says_how_many_it_stands_for():
    log = Refusals()
    for number in range(5):
        log.refuse(f"q{number}", RejectedError("the queue is full"))
    log.now_s += 0.5
    log.refuse("q5", NoFrameError("no image yet"), standing=True)
    assert log.logged() == ["q0"]

    log.now_s += 0.5
    log.refuse("q6", RejectedError("the queue is full"))
    log.now_s += 1.0
    log.refuse("q7", RejectedError("the queue is full"))

    assert log.logged() == ["q0", "q6", "q7"]
    assert [line.partition("held_back=")[2] for line in log.lines.warnings] == ["", "5", ""]
    assert 'error_msg="the queue is full"' in log.lines.warnings[0]


def test_other_refusals_are_logged_one_by_one():
    log = Refusals()
    for number in range(3):
        log.refuse(f"q{number}", NoFrameError("no image yet"))
    assert log.logged() == ["q0", "q1", "q2"]


def test_what_nobody_foresaw_is_logged_with_its_traceback():
    log = Refusals()
    try:
        raise ZeroDivisionError("division by zero")
    except ZeroDivisionError as error:
        log.refuse("q0", error, standing=True)
    (line,) = log.lines.errors
    assert line.startswith("query_id=q0")
    assert "ZeroDivisionError: division by zero" in line
    assert "Traceback" in line
