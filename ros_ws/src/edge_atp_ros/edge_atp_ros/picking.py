"""Example of a planner: asks where things are and logs the pick it would make.

Shows what a planner has to do with answers: join them to its questions by id, check status, age
and confidence, hold while a person or an obstacle is on the floor, and only then act. It moves
nothing; the pick is logged and published as text on ~/pick.
"""

from __future__ import annotations

import itertools
import time
from collections import OrderedDict

from edge_atp_msgs.msg import Answer, PruneConfig, Query
from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_msgs.msg import String

from edge_atp_ros.answer_text import item_asked_for, parse_hazard, parse_item, parse_place
from edge_atp_ros.declaring import declare

NODE_NAME = "planner"
_QOS = QoSProfile(depth=10)
_MAX_OPEN_QUESTIONS = 64
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
        self._keep_ratio = declare(
            self,
            "keep_ratio",
            0.0,
            "share of visual tokens the questions keep; 0: the VLM node's default",
            0.0,
            1.0,
        )
        self._max_age_s = declare(
            self, "max_answer_age", 2.0, "oldest image acted upon, seconds", 0.0, 60.0
        )
        self._min_confidence = declare(
            self, "min_confidence", 0.5, "least confidence acted upon", 0.0, 1.0
        )
        period_s = declare(self, "period", 2.0, "seconds between questions", 0.05, 3600.0)
        self._numbers = itertools.count()
        self._prefix = f"{self.get_name()}-{time.time_ns() // 1_000_000:x}"
        self._open: OrderedDict[str, str] = OrderedDict()
        self._hazard: str | None = None
        self._query_publisher = self.create_publisher(Query, "~/query", _QOS)
        self._pick_publisher = self.create_publisher(String, "~/pick", _QOS)
        self.create_subscription(Answer, "~/answer", self._on_answer, _QOS)
        self.create_timer(period_s, self._ask)

    def _ask(self) -> None:
        if self._query_publisher.get_subscription_count() == 0:
            self.get_logger().info("waiting for the VLM node", throttle_duration_sec=10.0)
            return
        number = next(self._numbers)
        text = self._wording[number % len(self._wording)]
        message = Query(query_id=f"{self._prefix}-{number}", text=text)
        message.header.stamp = self.get_clock().now().to_msg()
        if self._keep_ratio > 0:
            message.prune.policy = PruneConfig.POLICY_KEEP_RATIO
            message.prune.keep_ratio = self._keep_ratio
        self._open[message.query_id] = text
        if len(self._open) > _MAX_OPEN_QUESTIONS:
            self._open.popitem(last=False)
        self._query_publisher.publish(message)

    def _on_answer(self, answer: Answer) -> None:
        question = self._open.pop(answer.query_id, None)
        if question is None:  # somebody else's
            return
        if reason := self._unusable(answer):
            self.get_logger().warning(f"{question} -> ignored: {reason}")
            return
        self.get_logger().info(f"{question} -> {answer.text} ({answer.confidence:.2f})")
        if "hazard" in question.lower():
            self._hazard = parse_hazard(answer.text)
        item = item_asked_for(question)
        place = parse_place(answer.text)
        if item is not None and place is not None:
            self._pick(f"pick {item}: {place}")
        elif held := parse_item(answer.text):
            self.get_logger().info(f"the gripper or slot asked about holds a {held}")

    def _pick(self, action: str) -> None:
        if self._hazard:
            self.get_logger().warning(f"hold, {self._hazard} on the floor: would {action}")
            return
        self.get_logger().info(action)
        self._pick_publisher.publish(String(data=action))

    def _unusable(self, answer: Answer) -> str:
        """Why an answer must not be acted upon; "" if it may."""
        if answer.status != Answer.STATUS_FINAL:
            return answer.error_msg or f"status {answer.status}"
        now_ns = self.get_clock().now().nanoseconds
        stamp = answer.header.stamp
        age_s = (now_ns - stamp.sec * 1_000_000_000 - stamp.nanosec) / 1e9
        if age_s > self._max_age_s:
            return f"the image is {age_s:.1f} s old, more than {self._max_age_s:g} s"
        if answer.confidence < self._min_confidence:
            return f"confidence {answer.confidence:.2f} is below {self._min_confidence:g}"
        return ""
