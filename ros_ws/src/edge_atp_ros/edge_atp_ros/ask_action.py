"""The action `~/ask`: one question per goal, partial answers as feedback, cancelled between tokens.

A goal is accepted at once and becomes a question like those of `~/query`: it waits in the same
queue and its answer appears on the same topics, besides being the goal's result. Goals are
rejected only while the node is not active. Everything that changes a goal's state happens in the
executor's thread: rclpy's action server is not made for two.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from action_msgs.msg import GoalStatus
from edge_atp_msgs.action import Ask
from edge_atp_msgs.msg import Answer, PatchMaskArray
from edge_atp_msgs.msg import Query as QueryMessage
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.node import Node
from rclpy.qos import QoSProfile

from edge_atp_ros.cameras import CameraImage
from edge_atp_ros.questions import Question
from edge_atp_ros.reply import Reply

# A result nobody has fetched is kept this long; rclpy's 900 s would hold 20,000 goals at 25 Hz.
_RESULT_TIMEOUT_S = 10
# A service response has no acknowledgement to wait for, and is lost if its server goes at once.
_DELIVERY_S = 0.5
_FEEDBACK_QOS = QoSProfile(depth=100)
_COMPLETE = frozenset({Answer.STATUS_FINAL, Answer.STATUS_TRUNCATED})


@dataclass(frozen=True)
class Callbacks:
    """What the node does for the action.

    active: whether it serves.
    ask: takes a question with its goal and images; whatever becomes of it, the goal is told.
    withdraw: takes a question that still waits out of the queue and answers it CANCELED.
    """

    active: Callable[[], bool]
    ask: Callable[[QueryMessage, Reply, Sequence[CameraImage]], Question]
    withdraw: Callable[[Question], None]


class _Server(ActionServer):
    """``execute()`` without a callback only marks the goal as executing: its result comes later,
    from the inference thread, and a callback that waited for it would block the executor."""

    def notify_execute(
        self, goal_handle: ServerGoalHandle, execute_callback: Callable[..., Any] | None
    ) -> None:
        if execute_callback is not None:
            super().notify_execute(goal_handle, execute_callback)


class _Goal:
    """One goal, as the ``Reply`` of its question."""

    def __init__(self, action: AskAction, handle: ServerGoalHandle) -> None:
        self.handle = handle
        self.question: Question | None = None
        self._action = action
        self._canceled = threading.Event()

    def begun(self) -> None:
        self._action.run_in_executor(self._execute)

    def canceled(self) -> bool:
        return self._canceled.is_set()

    def partial(self, message: Answer) -> None:
        self.handle.publish_feedback(Ask.Feedback(partial=message))

    def final(self, message: Answer, masks: PatchMaskArray | None) -> None:
        result = Ask.Result(answer=message, masks=masks or PatchMaskArray())
        self._action.run_in_executor(lambda: self._finish(result))

    def cancel(self) -> None:
        """End the answer at its next token."""
        self._canceled.set()

    def _execute(self) -> None:
        self.handle.execute()

    def _finish(self, result: Ask.Result) -> None:
        def conclude(handle: ServerGoalHandle) -> Ask.Result:
            status = result.answer.status
            if status in _COMPLETE:
                handle.succeed()
            elif status == Answer.STATUS_CANCELED and handle.is_cancel_requested:
                handle.canceled()
            else:
                handle.abort()
            self._action.forget(self)
            return result

        self._action.conclude(self, conclude)


class AskAction:
    """Serves the action from configure to cleanup.

    Args:
        node: its executor's thread is the only one that touches goals.
        callbacks: what the node does with them.
    """

    def __init__(self, node: Node, callbacks: Callbacks) -> None:
        self._node = node
        self._callbacks = callbacks
        self._goals: dict[bytes, _Goal] = {}
        self._todo: deque[Callable[[], None]] = deque()
        self._concluded_s = float("-inf")
        self._server: _Server | None = _Server(
            node,
            Ask,
            "~/ask",
            execute_callback=lambda _handle: None,  # required, and never called: see _Server
            goal_callback=self._on_goal,
            handle_accepted_callback=self._on_accepted,
            cancel_callback=self._on_cancel,
            feedback_pub_qos_profile=_FEEDBACK_QOS,
            result_timeout=_RESULT_TIMEOUT_S,
        )

    def settled(self) -> bool:
        """Whether every goal has its result, and the last one has had time to leave."""
        return not self._goals and time.monotonic() - self._concluded_s > _DELIVERY_S

    def close(self) -> None:
        """Remove the action; a goal that is still open is lost, so stop serving first."""
        server, self._server = self._server, None
        self._goals.clear()
        self._todo.clear()
        if server is not None:
            server.destroy()

    def run_in_executor(self, action: Callable[[], None]) -> None:
        """Have the executor's thread do something; in the order of the calls."""
        self._todo.append(action)
        if self._node.executor is not None:
            self._node.executor.create_task(self._do_next)

    def conclude(self, goal: _Goal, callback: Callable[[ServerGoalHandle], Ask.Result]) -> None:
        """Have rclpy send a goal's result; ``callback`` sets its final state."""
        if self._server is None:
            return
        if goal.handle.status == GoalStatus.STATUS_ACCEPTED:
            goal.handle.execute()  # was refused or expired before its turn
        self._server.notify_execute(goal.handle, callback)

    def forget(self, goal: _Goal) -> None:
        """The goal's result is being sent."""
        self._goals.pop(_key(goal.handle), None)
        self._concluded_s = time.monotonic()

    def _do_next(self) -> None:
        # Tasks are not executed in the order of their creation, so each does the oldest thing.
        if self._todo:
            self._todo.popleft()()

    def _on_goal(self, _request: Ask.Goal) -> GoalResponse:
        if self._callbacks.active():
            return GoalResponse.ACCEPT
        self._node.get_logger().warning(
            "~/ask: goal rejected, the node is not active", throttle_duration_sec=1.0
        )
        return GoalResponse.REJECT

    def _on_accepted(self, handle: ServerGoalHandle) -> None:
        goal = _Goal(self, handle)
        self._goals[_key(handle)] = goal
        request = handle.request
        names = list(request.query.cameras) or [f"images[{i}]" for i in range(len(request.images))]
        images = tuple(
            CameraImage(names[i] if i < len(names) else "", image)
            for i, image in enumerate(request.images)
        )
        # rclpy keeps the request until the result expires.
        request.images = []
        goal.question = self._callbacks.ask(request.query, goal, images)

    def _on_cancel(self, handle: ServerGoalHandle) -> CancelResponse:
        goal = self._goals.get(_key(handle))
        if goal is None:  # its result is on the way
            return CancelResponse.REJECT
        goal.cancel()
        if goal.question is not None:
            self._callbacks.withdraw(goal.question)
        return CancelResponse.ACCEPT


def _key(handle: ServerGoalHandle) -> bytes:
    return bytes(handle.goal_id.uuid)
