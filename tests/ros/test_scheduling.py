"""Whose turn it is: order, rates, shared frames, deadlines, fairness; no ROS, our own clock."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest

pytest.importorskip("edge_atp_ros", reason="needs the built workspace: scripts/with_ros")

from edge_atp_ros.refusals import IdInUseError, RejectedError
from edge_atp_ros.scheduling import Scheduler
from edge_atp_ros.turns import Skips, Turn
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

CAMERA = ("camera",)
FAIR_EVERY = 3


@dataclass(frozen=True, eq=False)
class Ask:
    query_id: str
    cameras: tuple[str, ...] = CAMERA
    priority: int = 0
    deadline_s: float = 0.0
    max_rate_hz: float = 0.0


@dataclass
class Bench:
    """A scheduler, its clock, and what its judgements say."""

    capacity: int = 4
    max_standing: int = 3
    now_s: float = 100.0
    frames: dict[tuple[str, ...], object] = field(default_factory=lambda: {CAMERA: "live"})
    stale: set[object] = field(default_factory=set)
    service_s: float = 0.0

    def __post_init__(self) -> None:
        self.scheduler: Scheduler[Ask, object] = Scheduler(
            clock=lambda: self.now_s,
            frames_for=lambda question: self.frames.get(question.cameras),
            frame_wait_s=lambda: 1.0,
            hopeless=lambda question, left_s: left_s < self.service_s,
            is_stale=lambda question, frames: frames in self.stale,
            capacity=self.capacity,
            max_standing=self.max_standing,
            fair_every=FAIR_EVERY,
        )

    def offer(self, *frames: object) -> None:
        for frame in frames:
            self.scheduler.offer(CAMERA, frame)

    def turn(self) -> Turn[Ask, object]:
        turn = self.scheduler.next()
        assert turn is not None
        self.scheduler.finish()
        return turn

    def turns(self) -> list[tuple[str, object]]:
        served = []
        while (turn := self.scheduler.next()) is not None:
            served.append((turn.question.query_id, turn.frames))
            self.scheduler.finish()
        return served


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


# Standing questions and frames --------------------------------------------------------------


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


# Properties ---------------------------------------------------------------------------------

PRIORITIES = st.integers(0, 255)


@settings(max_examples=40, deadline=None)
@given(
    standing=st.lists(PRIORITIES, min_size=1, max_size=3),
    arrivals=st.lists(st.lists(PRIORITIES, max_size=3), min_size=60, max_size=60),
)
def test_nobody_starves_however_many_questions_arrive(standing, arrivals):
    """The bound of the module's docstring, with new frames and new questions at every turn."""
    bench = Bench(capacity=4)
    waits = {f"s{number}": 0 for number in range(len(standing))}
    for (name, _), priority in zip(list(waits.items()), standing, strict=True):
        bench.scheduler.hold(Ask(name, priority=priority))
    limit = {True: FAIR_EVERY**2 * len(standing), False: FAIR_EVERY**2 * bench.capacity}
    for tick, priorities in enumerate(arrivals):
        bench.offer(tick)
        for number, priority in enumerate(priorities):
            if len(bench.scheduler) < bench.capacity:
                bench.scheduler.submit(Ask(f"{tick}.{number}", priority=priority))
                waits[f"{tick}.{number}"] = 0
        served = bench.turn()
        for name in waits:
            waits[name] += 1
            assert waits[name] <= limit[name.startswith("s")], name
        if served.standing:
            waits[served.question.query_id] = 0
        else:
            del waits[served.question.query_id]
        bench.now_s += 0.01


class AnyHistory(RuleBasedStateMachine):
    """Whatever happens: one turn for each accepted question, and every frame is accounted for."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(capacity=3)
        self.scheduler = self.bench.scheduler
        self.accepted: set[str] = set()
        self.ended: Counter[str] = Counter()
        self.last_ordinal: dict[str, int] = {}
        self.numbers = 0
        self.busy = False

    @rule(priority=PRIORITIES, deadline_s=st.sampled_from([0.0, 0.05, 1.0]), dark=st.booleans())
    def submit(self, priority, deadline_s, dark):
        self.numbers += 1
        name = f"q{self.numbers}"
        cameras = ("dark",) if dark else CAMERA
        full = len(self.scheduler) == 3
        try:
            self.scheduler.submit(Ask(name, cameras, priority, deadline_s))
        except RejectedError:
            assert full
        else:
            assert not full
            self.accepted.add(name)

    @rule(
        name=st.sampled_from("abc"),
        priority=PRIORITIES,
        rate=st.sampled_from([0.0, 10.0]),
        deadline_s=st.sampled_from([0.0, 0.05]),
    )
    def hold(self, name, priority, rate, deadline_s):
        self.scheduler.hold(Ask(name, CAMERA, priority, deadline_s, rate))

    @rule(name=st.sampled_from("abc"))
    def release(self, name):
        held = name in self.scheduler.standing
        assert (self.scheduler.release(name) is not None) == held
        self.last_ordinal.pop(name, None)

    @rule(count=st.integers(1, 3))
    def offer(self, count):
        for _ in range(count):
            self.numbers += 1
            self.bench.frames[CAMERA] = self.numbers
            self.bench.offer(self.numbers)

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.1, 2.0]))
    def wait(self, seconds):
        self.bench.now_s += seconds

    @rule(stale=st.booleans())
    def age(self, stale):
        self.bench.stale = set(range(self.numbers)) if stale else set()

    @rule()
    def take_all_back(self):
        for question in self.scheduler.take_all_back():
            self.ended[question.query_id] += 1

    @precondition(lambda self: not self.busy)
    @rule()
    def begin(self):
        turn = self.scheduler.next()
        if turn is None:
            assert self.scheduler.sleep_s() > 0, "no busy waiting"
            return
        self.busy = True
        name = turn.question.query_id
        if not turn.standing:
            self.ended[name] += 1
            return
        last = self.last_ordinal.get(name, turn.ordinal - turn.skipped - 1)
        assert turn.ordinal == last + turn.skipped + 1
        self.last_ordinal[name] = turn.ordinal

    @precondition(lambda self: self.busy)
    @rule()
    def finish(self):
        self.scheduler.finish()
        self.busy = False

    @invariant()
    def nothing_is_lost(self):
        assert all(count == 1 for count in self.ended.values())
        assert len(self.accepted) == len(self.ended) + len(self.scheduler)
        for skips in self.scheduler.skips().values():
            pending = skips.offered - skips.turns - skips.own - skips.others
            assert 0 <= pending <= 2, "the newest and the shared one"

    def teardown(self):
        self.scheduler.finish()
        self.bench.now_s += 10
        for name, _ in self.bench.turns():
            if name in self.accepted:
                self.ended[name] += 1
        assert set(self.ended) == self.accepted
        assert set(self.ended.values()) <= {1}


AnyHistory.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyHistory = AnyHistory.TestCase
