"""The inference thread and its queue: every question out exactly once."""

from __future__ import annotations

import threading
import time

import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_msgs.msg import Query as QueryMessage
from edge_atp_ros.frames import StoredFrame
from edge_atp_ros.questions import NO_SEQUENCE, Intake, Question
from edge_atp_ros.refusals import IdInUseError, RejectedError
from edge_atp_ros.scheduling import Scheduler
from edge_atp_ros.worker import Worker
from sensor_msgs.msg import Image
from waiting import PATIENCE_S, wait_until

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
        self.items: list[Question] = []
        self.begun = threading.Event()
        self.release = threading.Event()

    def serve(self, item: Question, stopping) -> None:
        self.items.append(item)
        self.begun.set()
        while not (self.release.wait(0.01) or stopping() or item.canceled()):
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


class Camera:
    """The newest frame of the only camera."""

    def __init__(self) -> None:
        self.frame: StoredFrame | None = None

    def newest(self, cameras: tuple[str, ...]) -> tuple[StoredFrame, ...] | None:
        return None if self.frame is None else (self.frame,)

    def take(self, worker: Worker) -> None:
        number = 1 if self.frame is None else self.frame.number + 1
        self.frame = StoredFrame("camera", number, number, b"", Image)
        worker.frame_arrived("camera")


@pytest.fixture
def camera():
    return Camera()


@pytest.fixture
def worker(log, camera):
    scheduler = Scheduler(
        clock=time.perf_counter,
        frames_for=lambda question: (),
        frame_wait_s=lambda: 1.0,
        hopeless=lambda question, left_s: left_s <= 0,
        is_stale=lambda question, frames: False,
        capacity=4,
        max_standing=2,
    )
    worker = Worker(log.serve, log.cancel, log.on_error, scheduler, camera.newest)
    worker.start()
    yield worker
    worker.stop()


def test_higher_priority_first_then_order_of_arrival(worker, log):
    worker.submit(question("first"))
    assert log.begun.wait(PATIENCE_S)
    for name, priority in (("a", 0), ("b", 1), ("c", 0), ("d", 1)):
        worker.submit(question(name, priority))
    log.release.set()

    wait_until(lambda: len(log.served) == 5)
    assert log.served == ["first", "b", "d", "a", "c"]


def test_a_full_queue_rejects(worker, log):
    worker.submit(question("running"))
    assert log.begun.wait(PATIENCE_S)
    for number in range(4):
        worker.submit(question(str(number)))
    assert len(worker) == 4
    with pytest.raises(RejectedError, match="queue is full"):
        worker.submit(question("one too many"))


def test_an_id_is_free_again_once_answered(worker, log):
    worker.submit(question("same"))
    assert log.begun.wait(PATIENCE_S)
    with pytest.raises(IdInUseError, match="in use"):
        worker.submit(question("same"))
    log.release.set()
    wait_until(lambda: log.served == ["same"])
    wait_until(lambda: not worker.holds("same"))
    worker.submit(question("same"))
    wait_until(lambda: log.served == ["same", "same"])


def test_stopping_serves_or_cancels_each_question_once(worker, log):
    worker.submit(question("running"))
    assert log.begun.wait(PATIENCE_S)
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


def test_it_serves_again_after_a_stop(worker, log):
    worker.stop()
    assert not worker.serving
    worker.start()
    log.release.set()
    worker.submit(question("again"))
    wait_until(lambda: log.served == ["again"])


def test_a_question_taken_back_is_not_served(worker, log):
    worker.submit(question("running"))
    assert log.begun.wait(PATIENCE_S)
    waiting = question("waiting")
    worker.submit(waiting)
    assert worker.withdraw(waiting)
    assert not worker.withdraw(waiting)
    log.release.set()
    wait_until(lambda: not worker.holds("running"))
    assert log.served == ["running"]


def test_giving_up_hands_out_what_is_held_and_takes_nothing_more(worker, log):
    worker.submit(question("stuck"))
    assert log.begun.wait(PATIENCE_S)
    worker.submit(question("waiting"))
    assert [item.query_id for item in worker.abandon()] == ["stuck", "waiting"]
    with pytest.raises(RejectedError, match="not active"):
        worker.submit(question("late"))


# Standing questions -------------------------------------------------------------------------


def standing(query_id: str) -> Question:
    return Question(Query("what now?", query_id), ("camera",), 0.0, standing=True)


def test_a_standing_question_is_served_with_each_frame_and_a_claim_of_its_own(worker, log, camera):
    log.release.set()
    worker.hold(standing("s"))
    for count in (1, 2, 3):
        camera.take(worker)
        wait_until(lambda count=count: len(log.items) == count)
    assert [item.sequence for item in log.items] == [0, 1, 2]
    assert [item.frames[0].number for item in log.items] == [1, 2, 3]
    assert all(item.claim() for item in log.items), "each is owed an answer"


def test_a_new_standing_question_is_asked_about_the_frame_that_is_there(worker, log, camera):
    camera.take(worker)
    log.release.set()
    assert not worker.hold(standing("s"))
    wait_until(lambda: log.served == ["s"])


def test_removing_a_standing_question_ends_its_answer_under_way(worker, log, camera):
    worker.hold(standing("s"))
    camera.take(worker)
    assert log.begun.wait(PATIENCE_S)
    assert not log.items[0].canceled()
    assert worker.release("s") == 1
    assert log.items[0].canceled()
    assert worker.release("s") is None


def test_a_replaced_standing_question_ends_its_answer_and_counts_on(worker, log, camera):
    worker.hold(standing("s"))
    camera.take(worker)
    assert log.begun.wait(PATIENCE_S)
    assert worker.hold(standing("s"))
    assert log.items[0].canceled()
    log.release.set()
    wait_until(lambda: len(log.items) == 2)
    assert log.items[1].sequence == 1
    assert not log.items[1].canceled()


def test_standing_questions_outlive_a_stop_and_old_frames_do_not(worker, log, camera):
    log.release.set()
    worker.hold(standing("s"))
    worker.stop()
    camera.frame = None
    worker.start()
    camera.take(worker)
    wait_until(lambda: log.served == ["s"])


# Intake -------------------------------------------------------------------------------------


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


def test_a_refusal_for_an_id_in_use_takes_no_number():
    intake = make_intake()
    message = QueryMessage(query_id="a")
    assert intake.identify(message).sequence == 0
    assert intake.identify(message, lambda query_id: query_id == "a").sequence == NO_SEQUENCE
    assert intake.identify(message).sequence == 1


def test_a_standing_question_counts_on_where_its_id_left_off():
    intake = make_intake()
    message = QueryMessage(query_id="a", mode=QueryMessage.MODE_STANDING)
    assert [intake.identify(message).sequence for _ in range(2)] == [0, 0], "frames count, not it"
    intake.resume("a", 7)
    assert intake.identify(message).sequence == 7


def accept_standing(**fields) -> Question:
    intake = make_intake()
    message = QueryMessage(text="x", mode=QueryMessage.MODE_STANDING, **fields)
    return intake.accept(message, intake.identify(message), 0.0, 48, standing=True)


def test_a_standing_question_is_accepted_with_its_rate():
    assert accept_standing(max_rate=2.5).max_rate_hz == 2.5
    assert accept_standing().max_rate_hz == 0.0
    assert accept_standing().standing


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"max_rate": -1.0}, "max_rate is -1 Hz"),
        ({"max_rate": float("nan")}, "max_rate is nan"),
        ({"max_rate": float("inf")}, "max_rate is inf"),
        ({"conversation_id": "c"}, "conversation_id is 'c'; a standing question stands alone"),
        ({"cameras": ["periscope"]}, "this node has left, right"),
    ],
)
def test_a_standing_question_that_makes_no_sense_is_refused(fields, reason):
    with pytest.raises(InvalidQueryError, match=reason):
        accept_standing(**fields)


def test_each_way_in_takes_its_own_mode():
    intake = make_intake()
    once, standing_one = QueryMessage(text="x"), QueryMessage(text="x", mode=1)
    with pytest.raises(InvalidQueryError, match=r"publish a question asked once on ~/query"):
        intake.accept(once, intake.identify(once), 0.0, 48, standing=True)
    with pytest.raises(InvalidQueryError, match="call the service ~/set_query"):
        intake.accept(standing_one, intake.identify(standing_one), 0.0, 48)


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
