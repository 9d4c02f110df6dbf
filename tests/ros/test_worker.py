"""The inference thread and its queue: every question out exactly once."""

from __future__ import annotations

import threading
import time

import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_msgs.msg import Query as QueryMessage
from edge_atp_ros.error_codes import RejectedError
from edge_atp_ros.questions import Intake, Question
from edge_atp_ros.worker import Worker

from edge_atp.errors import InvalidQueryError
from edge_atp.types import Query


def question(query_id: str, priority: int = 0) -> Question:
    return Question(Query("why?", query_id), ("camera",), time.perf_counter(), priority=priority)


class Log:
    """Serves questions once released, and remembers what became of each."""

    def __init__(self) -> None:
        self.served: list[str] = []
        self.canceled: list[str] = []
        self.failed: list[str] = []
        self.begun = threading.Event()
        self.release = threading.Event()

    def serve(self, item: Question, stopping) -> None:
        self.begun.set()
        while not self.release.wait(0.01) and not stopping():
            pass
        self.served.append(item.query_id)
        if item.query_id.startswith("bad"):
            raise RuntimeError("no")

    def cancel(self, item: Question) -> None:
        self.canceled.append(item.query_id)

    def on_error(self, item: Question, error: Exception) -> None:
        self.failed.append(item.query_id)


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def worker(log):
    worker = Worker(log.serve, log.cancel, log.on_error, capacity=4)
    yield worker
    worker.stop()


def wait_until(holds) -> None:
    end = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_higher_priority_first_then_order_of_arrival(worker, log):
    worker.submit(question("first"))
    log.begun.wait(5)
    for name, priority in (("a", 0), ("b", 1), ("c", 0), ("d", 1)):
        worker.submit(question(name, priority))
    log.release.set()

    wait_until(lambda: len(log.served) == 5)
    assert log.served == ["first", "b", "d", "a", "c"]


def test_a_full_queue_rejects(worker, log):
    worker.submit(question("running"))
    log.begun.wait(5)
    for number in range(4):
        worker.submit(question(str(number)))
    assert len(worker) == 4
    with pytest.raises(RejectedError, match="queue is full"):
        worker.submit(question("one too many"))


def test_an_id_is_free_again_once_answered(worker, log):
    worker.submit(question("same"))
    log.begun.wait(5)
    with pytest.raises(InvalidQueryError, match="in use"):
        worker.submit(question("same"))
    log.release.set()
    wait_until(lambda: log.served == ["same"])
    wait_until(lambda: not worker._held_ids)
    worker.submit(question("same"))
    wait_until(lambda: log.served == ["same", "same"])


def test_stopping_serves_or_cancels_each_question_once(worker, log):
    worker.submit(question("running"))
    log.begun.wait(5)
    for name in ("x", "y", "z"):
        worker.submit(question(name))
    worker.stop()

    assert log.served == ["running"]
    assert log.canceled == ["x", "y", "z"]
    with pytest.raises(RejectedError, match="not active"):
        worker.submit(question("late"))


def test_an_error_does_not_end_the_thread(worker, log):
    log.release.set()
    worker.submit(question("bad"))
    wait_until(lambda: log.failed == ["bad"])
    worker.submit(question("good"))
    wait_until(lambda: "good" in log.served)


def make_intake(dropped: dict[str, int] | None = None) -> Intake:
    counts = dropped or {"left": 0, "right": 0}
    return Intake(("left", "right"), lambda: dict(counts))


def test_dropped_frames_are_counted_per_question_on_its_own_cameras():
    dropped = {"left": 10, "right": 20}
    intake = make_intake(dropped)
    message = QueryMessage(query_id="a", text="x", cameras=["left"])
    first = intake.accept(message, intake.identify(message), 0.0, 48)
    dropped["left"], dropped["right"] = 13, 99
    assert intake.answered(first) == 3
    dropped["left"] = 15
    again = intake.accept(message, intake.identify(message), 0.0, 48)
    assert intake.answered(again) == 2, "counted from the previous answer"


def test_an_empty_id_is_replaced_by_a_unique_one():
    intake, other = make_intake(), make_intake()
    ids = {i.identify(QueryMessage()).query_id for i in (intake, intake, other, other)}
    assert len(ids) == 4
    assert all(ids)


def test_an_id_asked_again_counts_on():
    intake = make_intake()
    assert [intake.identify(QueryMessage(query_id="a")).sequence for _ in range(3)] == [0, 1, 2]
    assert intake.identify(QueryMessage(query_id="b")).sequence == 0


def test_the_memory_of_ids_is_bounded():
    intake = make_intake()
    for number in range(5000):
        intake.identify(QueryMessage(query_id=str(number)))
    assert len(intake._past) <= 1024


def test_cameras_are_taken_in_the_questions_order_or_all():
    intake = make_intake()
    for names, expected in ((["right", "left"], ("right", "left")), ([], ("left", "right"))):
        message = QueryMessage(text="x", cameras=names)
        accepted = intake.accept(message, intake.identify(message), 0.0, 48)
        assert accepted.cameras == expected


def test_a_questions_own_frame_age_wins_over_the_nodes():
    intake = make_intake()
    message = QueryMessage(text="x")
    assert intake.accept(message, intake.identify(message), 3.0, 48).max_frame_age_s == 3.0
    message.max_frame_age.sec = 1
    assert intake.accept(message, intake.identify(message), 3.0, 48).max_frame_age_s == 1.0
    message.max_frame_age.sec = -1
    with pytest.raises(InvalidQueryError, match="max_frame_age is -1"):
        intake.accept(message, intake.identify(message), 3.0, 48)
