"""Query messages -> accepted questions: everything that can be refused without a frame.

What this version does not do yet (standing questions on the topic, conversations, closed answer
sets) is refused with a message, never ignored.
"""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from edge_atp_msgs.msg import Query as QueryMessage

from edge_atp.errors import InvalidQueryError
from edge_atp.types import Query
from edge_atp_ros.cameras import CameraImage
from edge_atp_ros.convert import to_query, to_seconds
from edge_atp_ros.reply import Reply

_REMEMBERED_IDS = 1024
_MAX_ID_CHARS = 200


@dataclass(frozen=True)
class Question:
    """A question that waits for its answer.

    query: what the pipeline gets.
    cameras: names, in the order the model sees them.
    accepted_s: ``time.perf_counter()`` on arrival.
    max_frame_age_s, deadline_s: 0 means no limit.
    priority: higher is served first.
    sequence: number of this question among those of the same id.
    dropped_before: frames that each camera had dropped when counting began.
    images: given with the question; empty: the cameras' newest.
    reply: the client to tell besides the topics.
    """

    query: Query
    cameras: tuple[str, ...]
    accepted_s: float
    max_frame_age_s: float = 0.0
    deadline_s: float = 0.0
    priority: int = 0
    sequence: int = 0
    dropped_before: Mapping[str, int] = field(default_factory=dict)
    images: tuple[CameraImage, ...] = ()
    reply: Reply | None = None
    _unanswered: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    @property
    def query_id(self) -> str:
        """The client's id, or the one that was assigned."""
        return self.query.query_id

    def claim(self) -> bool:
        """True exactly once: whoever gets it publishes the final answer.

        The watchdog and a thread that was stuck may both want to. Copies made by
        ``dataclasses.replace`` share the claim.
        """
        return self._unanswered.acquire(blocking=False)

    def canceled(self) -> bool:
        """Whether the client has cancelled it."""
        return self.reply is not None and self.reply.canceled()

    def unwanted(self) -> bool:
        """Whether going on is of no use: cancelled, or past its deadline."""
        return self.expires_in_s() < 0 or self.canceled()

    def expires_in_s(self) -> float:
        """Seconds until the deadline, negative after it; infinite without one."""
        if self.deadline_s <= 0:
            return float("inf")
        return self.accepted_s + self.deadline_s - time.perf_counter()


class Intake:
    """Turns messages into questions.

    Args:
        cameras: names of the node's cameras.
        dropped: frames that each camera has dropped so far.
    """

    def __init__(self, cameras: Sequence[str], dropped: Callable[[], Mapping[str, int]]) -> None:
        self._cameras = tuple(cameras)
        self._dropped = dropped
        self._past: OrderedDict[str, tuple[int, Mapping[str, int]]] = OrderedDict()
        self._lock = threading.Lock()
        # A restarted node must not hand out the ids of its predecessor again.
        self._prefix = uuid.uuid4().hex[:6]
        self._numbers = itertools.count(1)

    def identify(self, message: QueryMessage) -> Question:
        """A question with an id, valid or not, so that even a refusal can be joined to it."""
        query_id = message.query_id or f"{self._prefix}-{next(self._numbers)}"
        query_id = query_id[:_MAX_ID_CHARS]
        now = self._dropped()
        with self._lock:
            sequence, dropped = self._past.get(query_id, (0, now))
            self._remember(query_id, sequence + 1, dropped)
        return Question(
            query=Query(text=message.text, query_id=query_id),
            cameras=self._cameras,
            accepted_s=time.perf_counter(),
            sequence=sequence,
            dropped_before=dropped,
        )

    def accept(
        self, message: QueryMessage, question: Question, max_frame_age_s: float, max_tokens: int
    ) -> Question:
        """The question with all its conditions.

        Args:
            message: as it arrived.
            question: from ``identify``.
            max_frame_age_s: the node's own limit, for questions that give none.
            max_tokens: longest answer that may be asked for.
        Raises:
            InvalidQueryError: names the field, its value and what is allowed.
        """
        if len(message.query_id) > _MAX_ID_CHARS:
            raise InvalidQueryError(
                f"query_id has {len(message.query_id)} characters; at most {_MAX_ID_CHARS}"
            )
        _refuse_unsupported(message)
        if message.max_new_tokens > max_tokens:
            raise InvalidQueryError(
                f"max_new_tokens is {message.max_new_tokens}; at most {max_tokens}"
            )
        return replace(
            question,
            query=replace(to_query(message), query_id=question.query_id),
            cameras=self._cameras_of(message, question),
            # The node's limit is about its cameras; who brings images knows how old they are.
            max_frame_age_s=_duration_s(message, "max_frame_age")
            or (0.0 if question.images else max_frame_age_s),
            deadline_s=_duration_s(message, "deadline"),
            priority=message.priority,
        )

    def answered(self, question: Question) -> int:
        """Frames its cameras dropped since counting began for it; counting starts anew."""
        now = self._dropped()
        with self._lock:
            if question.query_id in self._past:
                self._past[question.query_id] = (self._past[question.query_id][0], now)
        if question.images:
            return 0
        before = question.dropped_before
        return sum(now[name] - before.get(name, now[name]) for name in question.cameras)

    def _remember(self, query_id: str, sequence: int, dropped: Mapping[str, int]) -> None:
        self._past[query_id] = (sequence, dropped)
        self._past.move_to_end(query_id)
        while len(self._past) > _REMEMBERED_IDS:
            self._past.popitem(last=False)

    def _cameras_of(self, message: QueryMessage, question: Question) -> tuple[str, ...]:
        if not question.images:
            return self._known(message.cameras)
        if message.cameras and len(message.cameras) != len(question.images):
            raise InvalidQueryError(
                f"query.cameras names {len(message.cameras)} images, the goal brings"
                f" {len(question.images)}; name each of them, or none"
            )
        return tuple(image.camera for image in question.images)

    def _known(self, names: Sequence[str]) -> tuple[str, ...]:
        for name in names:
            if name not in self._cameras:
                raise InvalidQueryError(
                    f"cameras names {name[:100]!r}; this node has {', '.join(self._cameras)}"
                )
        if len(set(names)) != len(names):
            raise InvalidQueryError(f"cameras names one camera twice: {', '.join(names)}")
        return tuple(names) or self._cameras


def _refuse_unsupported(message: QueryMessage) -> None:
    if message.mode == QueryMessage.MODE_STANDING:
        raise InvalidQueryError(
            "mode is MODE_STANDING; a topic takes MODE_ONCE questions only, and this version has"
            " no standing questions yet: ask again for each answer"
        )
    if message.mode != QueryMessage.MODE_ONCE:
        raise InvalidQueryError(f"mode is {message.mode}; it must be 0 (MODE_ONCE)")
    if message.conversation_id:
        raise InvalidQueryError(
            f"conversation_id is {message.conversation_id[:40]!r}; this version keeps no"
            " conversations: leave it empty and ask the whole question"
        )
    if message.choices:
        raise InvalidQueryError(
            f"choices has {len(message.choices)} entries; this version does not score closed"
            " answer sets: leave it empty and compare the text"
        )


def _duration_s(message: QueryMessage, name: str) -> float:
    seconds = to_seconds(getattr(message, name))
    if seconds < 0:
        raise InvalidQueryError(f"{name} is {seconds:g} s; it must be 0 (no limit) or positive")
    return seconds
