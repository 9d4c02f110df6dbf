"""Whose turn is it? Questions asked once and standing questions, one model, one rule.

    1. Questions asked once go before standing ones.
    2. Within a kind the highest priority goes first; of equal ones the one that has waited longest.
    3. Nobody starves: of ``fair_every`` turns in a row that a standing question had to wait for,
       the last is a standing one's; and of ``fair_every`` turns of a kind that the one waiting
       longest had to wait for, the last is its.

So a standing question that is due gets its turn within fair_every**2 * (standing questions held)
turns, and a question asked once, whose images are there, within
fair_every**2 * (questions waiting), whatever else arrives.

A standing question is due when a frame has been offered to it that it was not yet answered about.
Frames that come sooner than its ``max_rate_hz`` allows are not offered. Questions that were due
when a frame was taken for another one with the same cameras are answered about that same frame,
so that one encoding serves them all; otherwise the newest frame wins.

Knows nothing of ROS, threads, cameras or models: a frame is any object, the clock and all
judgements are handed in. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic

from edge_atp_ros.refusals import IdInUseError, RejectedError
from edge_atp_ros.turns import Contest, F, Q, Skips, Turn


@dataclass
class _Offer(Generic[F]):
    """A frame that waits for a question's turn."""

    frames: F
    ordinal: int
    offered_s: float


@dataclass
class _Once(Generic[Q]):
    question: Q
    since_s: float


@dataclass
class _Standing(Generic[Q, F]):
    """A standing question.

    order: of acceptance or of the last turn; decides between equals.
    opens_s: when its rate allows it another turn.
    due_s: since when it has waited for a turn; of meaning while it has ``newest``.
    newest: the newest frame it waits with.
    shared: the one, maybe older, that was taken for another question while this one was due.
    early: a frame that came before ``opens_s``.
    """

    question: Q
    order: int
    opens_s: float
    next_ordinal: int
    last_ordinal: int
    due_s: float = 0.0
    newest: _Offer[F] | None = None
    shared: _Offer[F] | None = None
    early: F | None = None
    skips: Skips = field(default_factory=Skips)


class Scheduler(Generic[Q, F]):
    """Holds the questions and says which one is next.

    Args:
        clock: seconds, monotonic.
        frames_for: the newest frames a question asked once would be answered about, or None if
            there are none yet.
        frame_wait_s: how long a question asked once waits for them.
        hopeless: whether a question with this many seconds left cannot be answered in time.
        is_stale: whether a frame has become too old for a question.
        capacity: questions asked once that may wait.
        max_standing: standing questions that may be held.
        fair_every: see the module's docstring; at least 2.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        frames_for: Callable[[Q], F | None],
        frame_wait_s: Callable[[], float],
        hopeless: Callable[[Q, float], bool],
        is_stale: Callable[[Q, F], bool],
        capacity: int,
        max_standing: int,
        fair_every: int = 4,
    ) -> None:
        self._clock = clock
        self._frames_for = frames_for
        self._frame_wait_s = frame_wait_s
        self._hopeless = hopeless
        self._is_stale = is_stale
        self._capacity = capacity
        self._max_standing = max_standing
        self._waiting: dict[str, _Once[Q]] = {}  # in order of arrival
        self._standing: dict[str, _Standing[Q, F]] = {}
        self._running: Turn[Q, F] | None = None
        self._events = 0
        self._kinds = Contest(fair_every)
        self._within = {False: Contest(fair_every), True: Contest(fair_every)}

    # Questions -------------------------------------------------------------------------------

    def submit(self, question: Q) -> None:
        """Accept a question asked once; it will get exactly one turn unless it is taken back.

        Raises:
            IdInUseError: a question of this id is held.
            RejectedError: too many wait.
        """
        if self.holds(question.query_id):
            raise IdInUseError(
                f"query_id {question.query_id!r} is in use by a question that is still unanswered"
                " or standing; give each question its own, or none"
            )
        if len(self._waiting) >= self._capacity:
            raise RejectedError(
                f"the queue is full ({self._capacity} questions, parameter queue_size); ask"
                " later or less often"
            )
        self._waiting[question.query_id] = _Once(question, self._clock())

    def hold(self, question: Q, first_ordinal: int = 0, frames: F | None = None) -> Q | None:
        """Accept a standing question, or replace the one of its id.

        Args:
            first_ordinal: number of the first frame offered to it. A replaced question's count
                goes on instead: frames it was offered and not answered about count as passed over.
            frames: offered to it at once.
        Returns:
            The question that was replaced.
        Raises:
            IdInUseError: a question asked once of this id is still unanswered.
            RejectedError: too many are held.
        """
        query_id = question.query_id
        old = self._standing.get(query_id)
        if query_id in self._waiting or self._is_running_once(query_id):
            raise IdInUseError(
                f"query_id {query_id!r} is in use by a question that is still unanswered; choose"
                " another, or wait for its answer"
            )
        if old is None and len(self._standing) >= self._max_standing:
            raise RejectedError(
                f"{self._max_standing} standing questions are held (parameter"
                " max_standing_questions); remove one first"
            )
        self._events += 1
        following, last = first_ordinal, first_ordinal - 1
        if old is not None:
            following, last = old.next_ordinal, old.last_ordinal
        now_s = self._clock()
        entry = _Standing[Q, F](question, self._events, now_s, following, last)
        if frames is not None:
            self._offer(entry, frames, now_s)
        self._standing[query_id] = entry
        return old.question if old else None

    def release(self, query_id: str) -> int | None:
        """Remove a standing question.

        Returns:
            The number its next frame would have had; None if there is no such question.
        """
        entry = self._standing.pop(query_id, None)
        return entry.next_ordinal if entry else None

    def take_back(self, question: Q) -> bool:
        """Remove a question asked once (the same object) that still waits."""
        entry = self._waiting.get(question.query_id)
        if entry is None or entry.question is not question:
            return False
        del self._waiting[question.query_id]
        return True

    def take_all_back(self) -> list[Q]:
        """Remove all questions asked once that wait, in order of arrival; frames are forgotten."""
        taken = [entry.question for entry in self._waiting.values()]
        self._waiting.clear()
        self.forget_frames()
        return taken

    def holds(self, query_id: str) -> bool:
        """Whether a question of this id waits, is being answered, or stands."""
        running = self._running
        return (
            query_id in self._standing
            or query_id in self._waiting
            or (running is not None and running.question.query_id == query_id)
        )

    def _is_running_once(self, query_id: str) -> bool:
        turn = self._running
        return turn is not None and not turn.standing and turn.question.query_id == query_id

    def __len__(self) -> int:
        """Questions asked once that wait."""
        return len(self._waiting)

    @property
    def standing(self) -> dict[str, Q]:
        """The standing questions by id."""
        return {query_id: entry.question for query_id, entry in self._standing.items()}

    def skips(self) -> dict[str, Skips]:
        """What became of the frames of each standing question."""
        return {query_id: Skips(**vars(entry.skips)) for query_id, entry in self._standing.items()}

    # Frames ----------------------------------------------------------------------------------

    def offer(self, cameras: Iterable[str], frames: F) -> None:
        """A new frame (or set of frames) of these cameras, in the order of a question's own."""
        now_s, key = self._clock(), tuple(cameras)
        for entry in self._standing.values():
            if entry.question.cameras != key:
                continue
            entry.skips.rate += entry.early is not None
            entry.early = frames
            if now_s >= entry.opens_s:
                self._offer_early(entry, now_s)

    def forget_frames(self) -> None:
        """The frames so far are void; those that questions waited with count as passed over."""
        for entry in self._standing.values():
            if entry.newest is not None:
                self._count_skip(entry)
            if entry.shared is not None and entry.shared is not entry.newest:
                self._count_skip(entry)
            entry.skips.rate += entry.early is not None
            entry.newest = entry.shared = entry.early = None

    def _offer_early(self, entry: _Standing[Q, F], offered_s: float) -> None:
        if entry.early is not None:
            frames, entry.early = entry.early, None
            self._offer(entry, frames, offered_s)

    def _offer(self, entry: _Standing[Q, F], frames: F, offered_s: float) -> None:
        if entry.newest is None:
            entry.due_s = offered_s
        elif entry.newest is not entry.shared:  # a shared frame is still going to be used
            self._count_skip(entry)
        entry.newest = _Offer(frames, entry.next_ordinal, offered_s)
        entry.next_ordinal += 1
        entry.skips.offered += 1

    def _count_skip(self, entry: _Standing[Q, F]) -> None:
        running = self._running
        if running is not None and running.question.query_id == entry.question.query_id:
            entry.skips.own += 1
        else:
            entry.skips.others += 1

    # Turns -----------------------------------------------------------------------------------

    def next(self) -> Turn[Q, F] | None:
        """The next turn, or None if there is nothing to do; ``finish`` ends it."""
        now_s = self._clock()
        for entry in self._standing.values():
            if now_s >= entry.opens_s:
                self._offer_early(entry, entry.opens_s)
        turn = self._late(now_s) or self._chosen(now_s)
        self._running = turn
        return turn

    def finish(self) -> None:
        """The turn is over."""
        self._running = None

    def sleep_s(self) -> float:
        """Seconds until a turn may come up by itself; infinite if only arrivals can bring one."""
        now_s, wait_s = self._clock(), self._frame_wait_s()
        times_s = [
            entry.opens_s
            for entry in self._standing.values()
            if entry.early is not None or entry.newest is not None
        ]
        for once in self._waiting.values():
            times_s.append(once.since_s + wait_s)
            if once.question.deadline_s > 0:
                times_s.append(once.since_s + once.question.deadline_s)
        return max(0.0, min(times_s, default=float("inf")) - now_s)

    def _late(self, now_s: float) -> Turn[Q, F] | None:
        for entry in self._waiting.values():
            if self._is_hopeless(entry.question, now_s - entry.since_s):
                del self._waiting[entry.question.query_id]
                return Turn(entry.question, False, None, entry.since_s, late=True)
        return None

    def _is_hopeless(self, question: Q, waited_s: float) -> bool:
        deadline_s = question.deadline_s
        return deadline_s > 0 and self._hopeless(question, deadline_s - waited_s)

    def _chosen(self, now_s: float) -> Turn[Q, F] | None:
        longest = self._first_ready(self._waiting.values(), now_s)
        due = [e for e in self._standing.values() if e.newest and now_s >= e.opens_s]
        to_standing = self._kinds.goes_to_other(contested=bool(longest and due))
        if longest and not to_standing:
            return self._once_turn(longest, now_s)
        return self._standing_turn(due, now_s) if due else None

    def _first_ready(
        self, entries: Iterable[_Once[Q]], now_s: float
    ) -> tuple[_Once[Q], F | None] | None:
        wait_s = self._frame_wait_s()
        for entry in entries:
            frames = self._frames_for(entry.question)
            if frames is not None or now_s >= entry.since_s + wait_s:
                return entry, frames
        return None

    def _once_turn(self, longest: tuple[_Once[Q], F | None], now_s: float) -> Turn[Q, F]:
        # Sorting is stable: equal priorities stay in order of arrival.
        by_priority = sorted(self._waiting.values(), key=lambda entry: -entry.question.priority)
        first = self._first_ready(by_priority, now_s) or longest
        to_longest = self._within[False].goes_to_other(contested=first[0] is not longest[0])
        entry, frames = longest if to_longest else first
        del self._waiting[entry.question.query_id]
        if frames is not None:
            self._share(entry.question.cameras, frames)
        return Turn(entry.question, False, frames, entry.since_s)

    def _standing_turn(self, due: list[_Standing[Q, F]], now_s: float) -> Turn[Q, F]:
        longest = min(due, key=lambda entry: (entry.due_s, entry.order))
        first = min(due, key=lambda e: (-e.question.priority, e.due_s, e.order))
        to_longest = self._within[True].goes_to_other(contested=first is not longest)
        entry = longest if to_longest else first
        question, period_s = entry.question, 0.0
        if question.max_rate_hz > 0:
            period_s = 1.0 / question.max_rate_hz
        offer = self._take(entry)
        # A newer frame that it already has waits from now: this question has had its turn.
        entry.opens_s = entry.due_s = now_s + period_s
        entry.order = self._events = self._events + 1
        entry.skips.turns += 1
        skipped = offer.ordinal - entry.last_ordinal - 1
        entry.last_ordinal = offer.ordinal
        self._share(question.cameras, offer.frames)
        late = self._is_hopeless(question, now_s - offer.offered_s)
        return Turn(question, True, offer.frames, offer.offered_s, offer.ordinal, skipped, late)

    def _take(self, entry: _Standing[Q, F]) -> _Offer[F]:
        """The frame of a due question's turn: the shared one unless too old, or the newest."""
        shared, newest = entry.shared, entry.newest
        assert newest is not None  # a question is due only with a frame
        entry.shared = None
        if shared is not None and shared is not newest:
            if not self._is_stale(entry.question, shared.frames):
                return shared
            self._count_skip(entry)
        entry.newest = None
        return newest

    def _share(self, cameras: tuple[str, ...], frames: F) -> None:
        """The others that wait with this very frame will be answered about it."""
        for entry in self._standing.values():
            waiting = entry.newest
            if entry.question.cameras != cameras or waiting is None or waiting.frames != frames:
                continue
            if entry.shared is not None and entry.shared is not waiting:
                self._count_skip(entry)
            entry.shared = waiting
