"""What holds in every history of questions and frames: nobody starves, nothing is lost."""

from __future__ import annotations

from collections import Counter

import pytest

pytest.importorskip("edge_atp_ros", reason="needs the built workspace: scripts/with_ros")

from edge_atp_ros.refusals import RejectedError
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from scheduling_bench import CAMERA, FAIR_EVERY, Ask, Bench

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
