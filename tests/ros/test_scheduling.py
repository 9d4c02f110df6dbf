"""Whose turn it is: order, fairness, bounds, ids, deadlines; no ROS, our own clock."""

from __future__ import annotations

import pytest

pytest.importorskip("edge_atp_ros", reason="needs the built workspace: scripts/with_ros")

from edge_atp_ros.refusals import IdInUseError, RejectedError
from scheduling_bench import Ask, Bench


@pytest.fixture
def bench():
    return Bench()


# Order --------------------------------------------------------------------------------------


def test_nothing_to_do_is_no_turn(bench):
    bench.scheduler.hold(Ask("standing"))
    assert bench.scheduler.next() is None, "no frame has come"
    assert bench.scheduler.sleep_s() == float("inf")


def test_higher_priority_first_then_order_of_arrival(bench):
    for name, priority in (("a", 0), ("b", 1), ("c", 0), ("d", 1)):
        bench.scheduler.submit(Ask(name, priority=priority))
    assert [name for name, _ in bench.turns()] == ["b", "d", "a", "c"]


def test_questions_asked_once_go_before_standing_ones(bench):
    bench.scheduler.hold(Ask("standing", priority=9))
    bench.offer("f0")
    bench.scheduler.submit(Ask("once"))
    assert [name for name, _ in bench.turns()] == ["once", "standing"]


def test_a_standing_question_gets_the_last_of_every_few_turns_it_waited_for(bench):
    bench.scheduler.hold(Ask("standing"))
    bench.offer("f0")
    for number in range(4):
        bench.scheduler.submit(Ask(str(number)))
    assert [name for name, _ in bench.turns()] == ["0", "1", "standing", "2", "3"]


def test_the_one_waiting_longest_gets_the_last_of_every_few_turns_of_its_kind(bench):
    bench.scheduler.submit(Ask("low"))
    served = []
    for number in range(4):
        bench.scheduler.submit(Ask(f"high{number}", priority=200))
        served.append(bench.turn().question.query_id)
    assert served == ["high0", "high1", "low", "high2"]


def test_a_question_whose_images_are_missing_holds_up_nobody(bench):
    bench.scheduler.submit(Ask("blind", cameras=("dark",), priority=9))
    bench.scheduler.submit(Ask("seeing"))
    assert bench.turns() == [("seeing", "live")]
    assert bench.scheduler.sleep_s() == pytest.approx(1.0)
    bench.now_s += 1.0
    assert bench.turns() == [("blind", None)], "told that no image came"


# Bounds and ids -----------------------------------------------------------------------------


def test_a_full_queue_rejects(bench):
    for number in range(4):
        bench.scheduler.submit(Ask(str(number)))
    with pytest.raises(RejectedError, match=r"queue is full \(4 questions, parameter queue_size\)"):
        bench.scheduler.submit(Ask("one too many"))
    assert len(bench.scheduler) == 4


def test_standing_questions_are_bounded_but_can_be_replaced(bench):
    for number in range(3):
        bench.scheduler.hold(Ask(str(number)))
    with pytest.raises(RejectedError, match="max_standing_questions"):
        bench.scheduler.hold(Ask("one too many"))
    first = bench.scheduler.standing["1"]
    assert bench.scheduler.hold(Ask("1", priority=3)) is first
    assert sorted(bench.scheduler.standing) == ["0", "1", "2"]


def test_an_id_is_taken_while_it_waits_runs_or_stands(bench):
    bench.scheduler.submit(Ask("a"))
    with pytest.raises(IdInUseError, match="'a' is in use"):
        bench.scheduler.submit(Ask("a"))
    with pytest.raises(IdInUseError, match="'a' is in use"):
        bench.scheduler.hold(Ask("a"))
    assert bench.scheduler.next() is not None
    with pytest.raises(IdInUseError):
        bench.scheduler.submit(Ask("a"))
    bench.scheduler.finish()
    bench.scheduler.hold(Ask("a"))
    with pytest.raises(IdInUseError):
        bench.scheduler.submit(Ask("a"))
    assert bench.scheduler.release("a") == 0
    bench.scheduler.submit(Ask("a"))


def test_only_the_very_question_is_taken_back(bench):
    question = Ask("a")
    bench.scheduler.submit(question)
    assert not bench.scheduler.take_back(Ask("a"))
    assert bench.scheduler.take_back(question)
    assert not bench.scheduler.take_back(question)
    assert bench.turns() == []


# Deadlines ----------------------------------------------------------------------------------


def test_a_deadline_that_cannot_be_met_is_said_at_once_and_costs_nobody_a_turn(bench):
    bench.service_s = 0.5
    bench.scheduler.submit(Ask("first"))
    bench.scheduler.submit(Ask("hasty", deadline_s=0.4))
    bench.scheduler.submit(Ask("patient", deadline_s=5.0))
    turn = bench.turn()
    assert (turn.question.query_id, turn.late, turn.frames) == ("hasty", True, None)
    assert [name for name, _ in bench.turns()] == ["first", "patient"]


def test_the_deadline_of_a_standing_question_counts_from_its_frame(bench):
    bench.service_s = 0.2
    bench.scheduler.hold(Ask("s", deadline_s=0.3))
    bench.offer("f0")
    bench.now_s += 0.2
    assert bench.turn().late
    bench.offer("f1")
    bench.now_s += 0.2
    bench.offer("f2")
    turn = bench.turn()
    assert (turn.frames, turn.late) == ("f2", False)


def test_the_worker_sleeps_no_longer_than_until_the_next_deadline(bench):
    bench.scheduler.submit(Ask("a", cameras=("dark",), deadline_s=0.25))
    assert bench.scheduler.sleep_s() == pytest.approx(0.25)
