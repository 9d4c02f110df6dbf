"""Standing questions and the frames offered to them: rates, gaps, frames shared and replaced."""

from __future__ import annotations

import pytest

pytest.importorskip("edge_atp_ros", reason="needs the built workspace: scripts/with_ros")

from edge_atp_ros.turns import Skips
from scheduling_bench import CAMERA, Ask, Bench


@pytest.fixture
def bench():
    return Bench()


def test_a_standing_question_is_answered_once_about_each_frame(bench):
    bench.scheduler.hold(Ask("s"))
    bench.offer("f0")
    assert bench.turns() == [("s", "f0")]
    assert bench.turns() == []
    bench.offer("f1")
    assert bench.turns() == [("s", "f1")]


def test_the_newest_frame_wins_and_the_gap_is_counted(bench):
    bench.scheduler.hold(Ask("s"))
    bench.offer("f0")
    assert bench.turn().ordinal == 0
    bench.offer("f1", "f2", "f3")
    turn = bench.turn()
    assert (turn.frames, turn.ordinal, turn.skipped) == ("f3", 3, 2)
    assert bench.scheduler.skips()["s"] == Skips(offered=4, turns=2, others=2)


def test_frames_that_come_during_the_own_answer_are_its_own_fault(bench):
    bench.scheduler.hold(Ask("s"))
    bench.offer("f0")
    assert bench.scheduler.next() is not None
    bench.offer("f1", "f2", "f3")
    bench.scheduler.finish()
    assert bench.turn().frames == "f3"
    assert bench.scheduler.skips()["s"] == Skips(offered=4, turns=2, own=2)


def test_frames_of_other_cameras_do_not_count(bench):
    bench.scheduler.hold(Ask("s"))
    bench.scheduler.offer(("camera", "other"), "f0")
    assert bench.turns() == []


def test_the_rate_is_kept_and_the_frames_before_it_allows_one_are_not_offered(bench):
    bench.scheduler.hold(Ask("s", max_rate_hz=2.0))
    served = []
    for tick in range(33):  # 32 Hz
        bench.offer(f"f{tick}")
        served += [frame for _, frame in bench.turns()]
        bench.now_s += 1 / 32
    assert served == ["f0", "f16", "f32"]
    assert bench.scheduler.skips()["s"] == Skips(offered=3, turns=3, rate=30)


def test_a_frame_just_before_its_time_is_answered_about_when_the_time_comes(bench):
    """A 1 Hz camera with jitter must not make a 1 Hz question answer every other frame."""
    bench.scheduler.hold(Ask("s", max_rate_hz=1.0))
    bench.offer("f0")
    assert bench.turns() == [("s", "f0")]
    bench.now_s += 0.99
    bench.offer("f1")
    assert bench.turns() == []
    assert bench.scheduler.sleep_s() == pytest.approx(0.01)
    bench.now_s += 0.01
    assert bench.turns() == [("s", "f1")]


def test_questions_due_together_share_one_frame(bench):
    for name in ("a", "b", "c"):
        bench.scheduler.hold(Ask(name))
    bench.offer("f0")
    first = bench.turn()
    bench.offer("f1", "f2")  # while the first was answered
    second, third = bench.turn(), bench.turn()
    assert [t.question.query_id for t in (first, second, third)] == ["a", "b", "c"]
    assert {t.frames for t in (first, second, third)} == {"f0"}, "one encoding serves all"
    assert bench.turn().frames == "f2", "the next round has the newest"
    assert bench.scheduler.skips()["b"] == Skips(offered=3, turns=1, others=1)


def test_a_shared_frame_that_became_too_old_gives_way_to_the_newest(bench):
    bench.scheduler.hold(Ask("a"))
    bench.scheduler.hold(Ask("b"))
    bench.offer("f0")
    bench.turn()
    bench.offer("f1")
    bench.stale.add("f0")
    turn = bench.turn()
    assert (turn.question.query_id, turn.frames, turn.skipped) == ("b", "f1", 1)
    assert bench.scheduler.skips()["b"] == Skips(offered=2, turns=1, others=1)


def test_a_question_asked_once_shares_its_frame_too(bench):
    bench.scheduler.hold(Ask("standing"))
    bench.offer("f0")
    bench.frames[CAMERA] = "f0"
    bench.scheduler.submit(Ask("once"))
    assert bench.turn().question.query_id == "once"
    bench.offer("f1")
    assert bench.turns() == [("standing", "f0"), ("standing", "f1")]


def test_a_replaced_question_counts_on(bench):
    bench.scheduler.hold(Ask("s"))
    bench.offer("f0")
    bench.turn()
    bench.scheduler.hold(Ask("s", priority=1))
    bench.offer("f1")
    assert bench.turn().ordinal == 1
    assert bench.scheduler.release("s") == 2
    bench.scheduler.hold(Ask("s"), first_ordinal=2)
    bench.offer("f2")
    turn = bench.turn()
    assert (turn.ordinal, turn.skipped) == (2, 0)


def test_a_frame_that_a_replaced_question_left_unanswered_counts_as_passed_over(bench):
    bench.scheduler.hold(Ask("s"))
    bench.offer("f0")
    bench.turn()
    bench.offer("f1")
    bench.scheduler.hold(Ask("s"))
    bench.offer("f2")
    turn = bench.turn()
    assert (turn.frames, turn.ordinal, turn.skipped) == ("f2", 2, 1)


def test_taking_all_back_forgets_the_frames_and_keeps_the_standing_questions(bench):
    bench.scheduler.hold(Ask("s"))
    questions = [Ask("a"), Ask("b")]
    for question in questions:
        bench.scheduler.submit(question)
    bench.offer("f0")
    assert bench.scheduler.take_all_back() == questions
    assert bench.turns() == []
    bench.offer("f1")
    turn = bench.turn()
    assert (turn.frames, turn.skipped) == ("f1", 1)
