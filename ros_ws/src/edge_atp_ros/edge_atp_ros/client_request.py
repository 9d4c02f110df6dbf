"""One question as a client asks it, and the reply to come."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from builtin_interfaces.msg import Duration
from edge_atp_msgs.msg import PruneConfig, Query

from edge_atp.errors import ConfigError
from edge_atp_ros.client_reply import AnswerGuard, Reply

if TYPE_CHECKING:
    _Future = concurrent.futures.Future[Reply]
else:
    _Future = concurrent.futures.Future

_NS = 1_000_000_000


class AskOptions(TypedDict, total=False):
    """What every asking method of the client takes beside the question; see ``Request``."""

    query_id: str
    cameras: Sequence[str]
    conversation_id: str
    max_frame_age_s: float
    deadline_s: float
    priority: int
    max_new_tokens: int
    prune: PruneConfig | None
    guard: AnswerGuard | None
    newer_than_ns: int
    timeout_s: float


@dataclass(frozen=True)
class Request:
    """A question with its conditions.

    question: in natural language.
    guard: what the reply must satisfy; None: nothing.
    timeout_s: longest wait for the reply, wall time.
    query_id: name of the question, not that of one still unanswered; "": the client makes one.
    choices, cameras, conversation_id, deadline_s, priority, max_new_tokens, prune: as in Query.msg.
    max_frame_age_s: oldest frame the node may answer about. Negative: the guard's max_age_s, so
        that the node spends no time on a frame that would be refused here.
    newer_than_ns: the frames must have been taken after this moment (ROS time), such as the end
        of the robot's last motion; 0: any.
    """

    question: str
    guard: AnswerGuard | None
    timeout_s: float
    choices: Sequence[str] = ()
    query_id: str = ""
    cameras: Sequence[str] = ()
    conversation_id: str = ""
    max_frame_age_s: float = -1.0
    deadline_s: float = 0.0
    priority: int = 0
    max_new_tokens: int = 0
    prune: PruneConfig | None = None
    newer_than_ns: int = 0

    def __post_init__(self) -> None:
        if self.timeout_s <= 0:
            raise ConfigError(f"timeout_s is {self.timeout_s:g}; it must be positive")
        if not 0 <= self.priority <= 255:
            raise ConfigError(f"priority is {self.priority}; it must be in 0..255")

    def to_message(self, query_id: str) -> Query:
        """The Query message."""
        age_s = self.max_frame_age_s
        if age_s < 0:
            age_s = self.guard.max_age_s if self.guard else 0.0
        return Query(
            query_id=query_id,
            text=self.question,
            cameras=list(self.cameras),
            conversation_id=self.conversation_id,
            choices=list(self.choices),
            max_frame_age=_to_duration(age_s),
            deadline=_to_duration(self.deadline_s),
            priority=self.priority,
            max_new_tokens=self.max_new_tokens,
            prune=self.prune or PruneConfig(),
        )


class PendingReply(_Future):
    """The reply to come: a ``concurrent.futures.Future`` that can also be awaited.

    ``result(timeout)`` blocks, ``await`` works in rclpy's coroutine callbacks, and
    ``asyncio.wrap_future`` takes it. ``cancel()`` stops waiting; the node answers all the same.
    """

    def __init__(self, request: Request, query_id: str) -> None:
        super().__init__()
        self.request = request
        self.query_id = query_id
        self.sent = False
        self.until_s = time.monotonic() + request.timeout_s

    def __await__(self) -> Generator[None, None, Reply]:
        # rclpy's executors resume a coroutine that yields None at their next turn.
        while not self.done():
            yield
        return self.result()

    def settle(self, outcome: Reply | BaseException) -> None:
        """Set the reply or the error, unless the asker has cancelled."""
        if not self.set_running_or_notify_cancel():
            return
        if isinstance(outcome, BaseException):
            self.set_exception(outcome)
        else:
            self.set_result(outcome)


def _to_duration(seconds: float) -> Duration:
    nanoseconds = round(seconds * _NS)
    return Duration(sec=nanoseconds // _NS, nanosec=nanoseconds % _NS)


def with_guard(options: AskOptions, guard: AnswerGuard | None, timeout_s: float) -> dict[str, Any]:
    """The options, with a client's own guard and timeout where they give none."""
    return {"guard": guard, "timeout_s": timeout_s, **options}
