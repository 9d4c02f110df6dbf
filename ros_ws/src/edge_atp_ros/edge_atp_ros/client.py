"""Ask the VLM node from an rclpy planner, and get answers that may be acted upon.

    class Planner(Node):
        def __init__(self):
            super().__init__("planner")
            guard = AnswerGuard(max_age_s=1.0, min_confidence=0.8, needs_masks=True)
            self._vlm = VlmClient(self, guard=guard)
            self.create_timer(2.0, self._look)

        def _look(self):                                   # blocking, even in a callback
            try:
                reply = self._vlm.ask("where is the red box?", timeout_s=1.0)
            except UnusableAnswerError as error:           # stale, unsure, refused, ...
                self.get_logger().warning(f"not acting: {error}")
            except ClientError as error:                   # no node, no answer
                self.get_logger().error(str(error))
            else:
                self.go_to(reply.text, reply.masks)

        async def _look_async(self):                       # as a coroutine callback
            reply = await self._vlm.ask_async("is there a person on the floor?")

    vlm.ask_choice("is slot 2 on the top shelf empty?", ["yes", "no"]).confidence
    vlm.subscribe(lambda reply: print(reply.text))         # every answer, asked by whomever
    vlm.stand("what hazard is on the floor?", query_id="floor", max_rate_hz=2.0)

The client has a node and a thread of its own, so nothing here spins or blocks the planner's
executor: every call works from any thread and from a callback of any executor, and answers arrive
while a callback of a single-threaded one waits for them. Callbacks given to ``subscribe`` and
``add_done_callback`` run in the client's thread; they must not block.

Timeouts are wall time: they guard against a node that is gone. Ages are ROS time.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from edge_atp_msgs.msg import Answer, PatchMaskArray, Query
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile

from edge_atp_ros.client_errors import (
    ClientError,
    ClosedError,
    IncompleteAnswerError,
    LowConfidenceError,
    NoAnswerError,
    RefusedAnswerError,
    StaleAnswerError,
    UnusableAnswerError,
    WrongFrameError,
)
from edge_atp_ros.client_joining import MaskJoiner
from edge_atp_ros.client_node import private_node
from edge_atp_ros.client_reply import AnswerGuard, Reply
from edge_atp_ros.client_request import AskOptions, PendingReply, Request, with_guard
from edge_atp_ros.client_standing import StandingQuestions

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "AnswerGuard",
    "ClientError",
    "ClosedError",
    "IncompleteAnswerError",
    "LowConfidenceError",
    "NoAnswerError",
    "PendingReply",
    "RefusedAnswerError",
    "Reply",
    "StaleAnswerError",
    "UnusableAnswerError",
    "VlmClient",
    "WrongFrameError",
]

_QOS = QoSProfile(depth=1000)
_POLL_S = 0.05
_SETTLE_S = 0.2  # what this side has matched, the other side matches a moment later
NO_GUARD = AnswerGuard()


class VlmClient:
    """Asks one VLM node.

    Args:
        node: the planner; gives namespace, remappings, log and use_sim_time. It need not spin.
        vlm: the VLM node's name, relative to the planner's namespace or absolute; "~": the
            planner's own topics ~/query, ~/answer and ~/patch_mask, to be remapped.
        guard: what every answer must satisfy unless a call says otherwise; by default only that
            it is complete. None: nothing, and answers with an error are returned as they are.
        timeout_s: longest wait for an answer unless a call says otherwise.
        mask_wait_s: how long an answer waits for its mask, which normally comes first.
    """

    def __init__(
        self,
        node: Node,
        vlm: str = "vlm_node",
        *,
        guard: AnswerGuard | None = NO_GUARD,
        timeout_s: float = 10.0,
        mask_wait_s: float = 1.0,
    ) -> None:
        self._logger = node.get_logger()
        self._guard = guard
        self._timeout_s = timeout_s
        self._prefix = f"{node.get_name()}-{uuid.uuid4().hex[:6]}"
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._pending: dict[str, PendingReply] = {}
        self._listeners: dict[int, Callable[[Reply], None]] = {}
        self._joiner = MaskJoiner(mask_wait_s)
        self._ready_s: float | None = None
        self._closing = threading.Event()
        query, answer, masks = (
            node.resolve_topic_name(f"{vlm}/{name}") for name in ("query", "answer", "patch_mask")
        )
        self._node = private_node(node)
        self._answer_topic = answer
        self._queries = self._node.create_publisher(Query, query, _QOS)
        self._node.create_subscription(Answer, answer, self._on_answer, _QOS)
        self._node.create_subscription(PatchMaskArray, masks, self._on_masks, _QOS)
        self._standing = StandingQuestions(
            self._node,
            node.resolve_service_name(f"{vlm}/set_query"),
            node.resolve_service_name(f"{vlm}/remove_query"),
        )
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name="vlm_client", daemon=True)
        self._thread.start()

    def __enter__(self) -> VlmClient:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    def now_ns(self) -> int:
        """The ROS clock; goes on while the planner's own callbacks wait."""
        return int(self._node.get_clock().now().nanoseconds)

    def ready(self) -> bool:
        """Whether a VLM node listens, and its answers would arrive."""
        if self._queries.get_subscription_count() == 0 or not self._node.count_publishers(
            self._answer_topic
        ):
            self._ready_s = None
        elif self._ready_s is None:
            self._ready_s = time.monotonic() + _SETTLE_S
        return self._ready_s is not None and time.monotonic() >= self._ready_s

    def ask(self, question: str, **options: Unpack[AskOptions]) -> Reply:
        """Ask and wait. The options are the fields of ``Request``.

        Raises:
            UnusableAnswerError: the answer does not pass the guard; the subclass says why.
            NoAnswerError: none came in time.
            ClosedError: the client was closed meanwhile.
            ClientError: called in the client's own thread, which would wait for itself.
        """
        self._refuse_own_thread("ask")
        return self.ask_async(question, **options).result()

    def ask_choice(
        self, question: str, choices: Sequence[str], **options: Unpack[AskOptions]
    ) -> Reply:
        """Ask which of the given answers is the most probable, with its probability, and wait.

        Raises:
            ClientError: as ``ask``; RefusedAnswerError where the node cannot score choices.
        """
        self._refuse_own_thread("ask_choice")
        return self.ask_choice_async(question, choices, **options).result()

    def ask_async(self, question: str, **options: Unpack[AskOptions]) -> PendingReply:
        """Ask; returns the reply to come at once. The options are the fields of ``Request``.

        Raises:
            ClosedError: the client is closed.
        """
        return self._submit(question, (), options)

    def ask_choice_async(
        self, question: str, choices: Sequence[str], **options: Unpack[AskOptions]
    ) -> PendingReply:
        """``ask_choice``, returning at once."""
        return self._submit(question, tuple(choices), options)

    def subscribe(
        self,
        callback: Callable[[Reply], None],
        *,
        query_id: str = "",
        guard: AnswerGuard | None = NO_GUARD,
        on_unusable: Callable[[UnusableAnswerError], None] | None = None,
    ) -> Callable[[], None]:
        """Hear every final answer of the node, such as those to a standing question.

        Args:
            callback: gets each reply that passes the guard.
            query_id: only answers to this question; "": to any.
            guard: what a reply must satisfy; None: nothing.
            on_unusable: gets the error of each reply that does not pass.
        Returns:
            A function that ends the subscription.
        """

        def hear(reply: Reply) -> None:
            if query_id and reply.query_id != query_id:
                return
            try:
                if guard is not None:
                    guard.check(reply, self.now_ns())
            except UnusableAnswerError as error:
                if on_unusable is not None:
                    on_unusable(error)
                return
            callback(reply)

        key = next(self._numbers)
        with self._lock:
            self._listeners[key] = hear
        return functools.partial(self._unsubscribe, key)

    def stand(
        self,
        question: str,
        *,
        max_rate_hz: float = 0.0,
        choices: Sequence[str] = (),
        **options: Unpack[AskOptions],
    ) -> str:
        """Set a standing question, answered again and again; hear it with ``subscribe``. Waits.

        Args:
            max_rate_hz: answers per second at most; 0: every frame the node can manage.
            choices, options: as for asking. A ``query_id`` replaces the question of that name,
                without one the node assigns it; ``newer_than_ns`` plays no part.
        Returns:
            The query_id.
        Raises:
            NoAnswerError: the node does not respond.
            ClientError: it refused; or called in the client's own thread.
        """
        self._refuse_own_thread("stand")
        request = self._request(question, tuple(choices), options)
        query = request.to_message(request.query_id)
        query.max_rate = max_rate_hz
        return self._standing.set(query, request.timeout_s)

    def withdraw(self, query_id: str) -> None:
        """Remove a standing question. Waits.

        Raises:
            NoAnswerError, ClientError: as ``stand``.
        """
        self._refuse_own_thread("withdraw")
        self._standing.remove(query_id, self._timeout_s)

    def close(self) -> None:
        """Stop; whoever still waits gets a ClosedError."""
        self._closing.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _unsubscribe(self, key: int) -> None:
        with self._lock:
            self._listeners.pop(key, None)

    def _submit(self, question: str, choices: tuple[str, ...], options: AskOptions) -> PendingReply:
        request = self._request(question, choices, options)
        query_id = request.query_id or f"{self._prefix}-{next(self._numbers)}"
        pending = PendingReply(request, query_id)
        with self._lock:
            if self._closing.is_set():
                raise ClosedError("the client is closed; make a new one")
            self._pending[pending.query_id] = pending
        self._send(pending)
        return pending

    def _request(self, question: str, choices: tuple[str, ...], options: AskOptions) -> Request:
        given = with_guard(options, self._guard, self._timeout_s)
        return Request(question, choices=choices, **given)

    def _refuse_own_thread(self, call: str) -> None:
        if threading.current_thread() is self._thread:
            raise ClientError(
                f"{call}() was called in a callback of subscribe() or add_done_callback(), which"
                " runs in the client's own thread and would wait for itself; ask_async() does not"
            )

    def _send(self, pending: PendingReply) -> None:
        """Publish the question once a node listens; before, it would be lost."""
        if not self.ready():
            return
        with self._lock:  # this thread and the client's own may both try
            if pending.sent:
                return
            pending.sent = True
        message = pending.request.to_message(pending.query_id)
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._queries.publish(message)

    def _spin(self) -> None:
        while not self._closing.is_set() and self._node.context.ok():
            try:
                self._executor.spin_once(timeout_sec=_POLL_S)
            except Exception:
                if self._node.context.ok():  # else: ROS was shut down meanwhile
                    self._logger.error(f"the VLM client stops\n{traceback.format_exc()}")
                break
            self._look_after()
        with self._lock:
            self._closing.set()
            waiting = list(self._pending.values())
            self._pending.clear()
        for pending in waiting:
            pending.settle(ClosedError("the client was closed before the answer came"))
        self._executor.shutdown()
        self._node.destroy_node()

    def _look_after(self) -> None:
        """What has waited too long."""
        for reply in self._joiner.overdue():
            self._deliver(reply)
        now_s = time.monotonic()
        with self._lock:
            waiting = list(self._pending.values())
        for pending in waiting:
            if pending.cancelled():
                self._forget(pending.query_id)
            elif now_s >= pending.until_s:
                self._forget(pending.query_id)
                pending.settle(NoAnswerError(self._silence(pending)))
            elif not pending.sent:
                self._send(pending)

    def _silence(self, pending: PendingReply) -> str:
        patience_s = pending.request.timeout_s
        if not pending.sent:
            return (
                f"nobody has listened on {self._queries.topic_name} for {patience_s:g} s; is the"
                " VLM node running and active, and in this ROS domain?"
            )
        return f"no answer to {pending.request.question!r} after {patience_s:g} s"

    def _forget(self, query_id: str) -> PendingReply | None:
        with self._lock:
            return self._pending.pop(query_id, None)

    def _on_answer(self, answer: Answer) -> None:
        if (reply := self._joiner.add_answer(answer)) is not None:
            self._deliver(reply)

    def _on_masks(self, masks: PatchMaskArray) -> None:
        if (reply := self._joiner.add_masks(masks)) is not None:
            self._deliver(reply)

    def _deliver(self, reply: Reply) -> None:
        pending = self._forget(reply.query_id)
        if pending is not None:
            request = pending.request
            reply = replace(reply, question=request.question)
            try:
                if request.guard is not None:
                    request.guard.check(reply, self.now_ns(), request.newer_than_ns)
            except UnusableAnswerError as error:
                pending.settle(error)
            else:
                pending.settle(reply)
        with self._lock:
            listeners = list(self._listeners.values())
        for hear in listeners:
            try:
                hear(reply)
            except Exception:  # one listener's bug must not end all answers
                self._logger.error(f"a callback of subscribe() failed\n{traceback.format_exc()}")
