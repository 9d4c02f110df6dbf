"""Example of a planner: asks where things are and logs the pick it would make.

The smallest use of ``edge_atp_ros.client``: ask without blocking, act only on answers that pass
the guard, hold while a person or an obstacle is on the floor. It moves nothing; the pick is logged
and published as text on ~/pick, and what it will not act upon, with the reason, on ~/refusal.
``pick_and_place`` is the example that moves an arm.
"""

from __future__ import annotations

import itertools

from edge_atp_msgs.msg import PruneConfig
from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_msgs.msg import String

from edge_atp_ros.answer_text import item_asked_for, parse_hazard, parse_item, parse_place
from edge_atp_ros.client import (
    AnswerGuard,
    ClientError,
    ClosedError,
    PendingReply,
    Reply,
    VlmClient,
)
from edge_atp_ros.declaring import declare

NODE_NAME = "planner"
_QOS = QoSProfile(depth=10)
_QUESTIONS = (
    "what hazard is on the floor?",
    "where is the red box?",
    "what is the gripper holding?",
)


class PickPlanner(Node):
    """See the module's docstring."""

    def __init__(self) -> None:
        super().__init__(NODE_NAME)
        self._wording = declare(self, "questions", _QUESTIONS, "asked in turn, again and again")
        keep_ratio = declare(
            self,
            "keep_ratio",
            0.0,
            "share of visual tokens the questions keep; 0: the VLM node's default",
            0.0,
            1.0,
        )
        self._prune = None
        if keep_ratio > 0:
            policy = PruneConfig.POLICY_KEEP_RATIO
            self._prune = PruneConfig(policy=policy, keep_ratio=keep_ratio)
        max_age_s = declare(
            self, "max_answer_age", 2.0, "oldest image acted upon, seconds", 0.0, 60.0
        )
        min_confidence = declare(
            self, "min_confidence", 0.5, "least confidence acted upon", 0.0, 1.0
        )
        period_s = declare(self, "period", 2.0, "seconds between questions", 0.05, 3600.0)
        self._numbers = itertools.count()
        self._hazard: str | None = None
        self._pick_publisher = self.create_publisher(String, "~/pick", _QOS)
        self._refusal_publisher = self.create_publisher(String, "~/refusal", _QOS)
        self._vlm = VlmClient(self, "~", guard=AnswerGuard(max_age_s, min_confidence))
        self.create_timer(period_s, self._ask)

    def destroy_node(self) -> None:
        """Close the client first: its thread publishes through this node."""
        if hasattr(self, "_vlm"):
            self._vlm.close()
        super().destroy_node()

    def _ask(self) -> None:
        if not self._vlm.ready():
            self.get_logger().info("waiting for the VLM node", throttle_duration_sec=10.0)
            return
        text = self._wording[next(self._numbers) % len(self._wording)]
        self._vlm.ask_async(text, prune=self._prune).add_done_callback(self._on_done)

    def _on_done(self, pending: PendingReply) -> None:
        """Runs in the client's thread, one answer after the other."""
        try:
            self._on_reply(pending.result())
        except ClosedError:
            return
        except ClientError as error:
            reason = f"{pending.request.question} -> ignored: {error}"
            self.get_logger().warning(reason)
            self._refusal_publisher.publish(String(data=reason))

    def _on_reply(self, reply: Reply) -> None:
        self.get_logger().info(f"{reply.question} -> {reply.text} ({reply.confidence:.2f})")
        if "hazard" in reply.question.lower():
            self._hazard = parse_hazard(reply.text)
        item = item_asked_for(reply.question)
        place = parse_place(reply.text)
        if item is not None and place is not None:
            self._pick(f"pick {item}: {place}")
        elif held := parse_item(reply.text):
            self.get_logger().info(f"the gripper or slot asked about holds a {held}")

    def _pick(self, action: str) -> None:
        if self._hazard:
            self.get_logger().warning(f"hold, {self._hazard} on the floor: would {action}")
            return
        self.get_logger().info(action)
        self._pick_publisher.publish(String(data=action))
