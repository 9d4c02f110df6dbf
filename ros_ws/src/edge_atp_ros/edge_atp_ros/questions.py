"""Query messages -> accepted questions: everything that can be refused without a frame."""

from __future__ import annotations

import itertools
import math
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from edge_atp_msgs.msg import Query as QueryMessage

from edge_atp.errors import InvalidQueryError
from edge_atp.types import Query
from edge_atp_ros.convert import to_query, to_seconds
from edge_atp_ros.question import Question

__all__ = ["NO_SEQUENCE", "Intake", "Question"]

_REMEMBERED_IDS = 1024
_MAX_ID_CHARS = 200
# Sequence of a refusal that must not be taken for an answer to the question that holds the id.
NO_SEQUENCE = 2**64 - 1


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

    def identify(
        self, message: QueryMessage, is_held: Callable[[str], bool] = lambda _id: False
    ) -> Question:
        """A question with an id, valid or not, so that even a refusal can be joined to it.

        Args:
            is_held: whether a question of an id is held already; then the sequence is
                ``NO_SEQUENCE``. A standing question may replace the one of its id.
        """
        query_id = message.query_id or f"{self._prefix}-{next(self._numbers)}"
        query_id = query_id[:_MAX_ID_CHARS]
        standing = message.mode == QueryMessage.MODE_STANDING
        now = self._dropped()
        with self._lock:
            sequence, dropped = self._past.get(query_id, (0, now))
            if is_held(query_id):
                sequence = NO_SEQUENCE
            elif not standing:
                self._remember(query_id, sequence + 1, dropped)
        return Question(
            query=Query(text=message.text, query_id=query_id),
            cameras=self._cameras,
            accepted_s=time.perf_counter(),
            sequence=sequence,
            dropped_before=dropped,
        )

    def accept(
        self,
        message: QueryMessage,
        question: Question,
        max_frame_age_s: float,
        max_tokens: int,
        *,
        standing: bool = False,
    ) -> Question:
        """The question with all its conditions.

        Args:
            message: as it arrived.
            question: from ``identify``.
            max_frame_age_s: the node's own limit, for questions that give none.
            max_tokens: longest answer that may be asked for.
            standing: it came by a way that takes standing questions, and those only.
        Raises:
            InvalidQueryError: names the field, its value and what is allowed.
        """
        if len(message.query_id) > _MAX_ID_CHARS:
            raise InvalidQueryError(
                f"query_id has {len(message.query_id)} characters; at most {_MAX_ID_CHARS}"
            )
        _check_mode(message, standing)
        _check_conversation(message, standing)
        if message.max_new_tokens > max_tokens:
            raise InvalidQueryError(
                f"max_new_tokens is {message.max_new_tokens}; at most {max_tokens} (parameter"
                " max_new_tokens), or 0 for the node's default"
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
            standing=standing,
            max_rate_hz=_rate_hz(message) if standing else 0.0,
        )

    def answered(self, question: Question) -> int:
        """Frames its cameras dropped since counting began for it; counting starts anew."""
        if question.standing:
            return question.skipped
        now = self._dropped()
        with self._lock:
            if question.query_id in self._past:
                self._past[question.query_id] = (self._past[question.query_id][0], now)
        if question.images:
            return 0
        before = question.dropped_before
        # A frame counts as dropped until a question with other cameras is answered about it.
        return max(0, sum(now[name] - before.get(name, now[name]) for name in question.cameras))

    def resume(self, query_id: str, sequence: int) -> None:
        """Let a removed standing question's count go on when its id is used again."""
        with self._lock:
            self._remember(query_id, sequence, self._dropped())

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


def _check_mode(message: QueryMessage, standing: bool) -> None:
    if standing and message.mode != QueryMessage.MODE_STANDING:
        raise InvalidQueryError(
            f"mode is {message.mode}; it must be 1 (MODE_STANDING) here: publish a question asked"
            " once on ~/query"
        )
    if not standing and message.mode == QueryMessage.MODE_STANDING:
        raise InvalidQueryError(
            "mode is MODE_STANDING; ~/query and ~/ask take MODE_ONCE questions only: call the"
            " service ~/set_query"
        )
    if not standing and message.mode != QueryMessage.MODE_ONCE:
        raise InvalidQueryError(f"mode is {message.mode}; it must be 0 (MODE_ONCE)")


def _check_conversation(message: QueryMessage, standing: bool) -> None:
    name = message.conversation_id
    if standing and name:
        raise InvalidQueryError(
            f"conversation_id is {name[:40]!r}; a standing question stands alone, leave it empty"
        )
    if len(name) > _MAX_ID_CHARS:
        raise InvalidQueryError(
            f"conversation_id has {len(name)} characters; at most {_MAX_ID_CHARS}"
        )


def _rate_hz(message: QueryMessage) -> float:
    if not 0.0 <= message.max_rate < math.inf:
        raise InvalidQueryError(
            f"max_rate is {message.max_rate:g} Hz; it must be 0 (every frame) or positive"
        )
    return float(message.max_rate)


def _duration_s(message: QueryMessage, name: str) -> float:
    seconds = to_seconds(getattr(message, name))
    if seconds < 0:
        raise InvalidQueryError(f"{name} is {seconds:g} s; it must be 0 (no limit) or positive")
    return seconds
