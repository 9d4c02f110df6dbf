"""Watches a run of the cell: what the planner did, what it asked, what was true, what was seen."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from edge_atp_msgs.msg import Query
from edge_atp_ros.answer_text import parse_place
from edge_atp_ros.client import Reply, VlmClient
from edge_atp_ros.convert import to_ns
from edge_atp_ros.images import to_rgb
from numpy.typing import NDArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import String

from models.warehouse_tiny.vocabulary import NUM_COLUMNS, SHELVES
from sim.node import START_S

_LATCHED = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_STEP_S = 0.02
_FRAME_PERIOD_S = 0.5  # of the film, simulated
_KEPT_FRAMES = 50
BEGUN, DONE, FAILED, PICKING, PLACING = "begun", "done", "failed", "picking", "placing"


@dataclass(frozen=True)
class Shot:
    """A picture of the run. second: simulated."""

    second: float
    image: NDArray[np.uint8]


@dataclass(frozen=True)
class Asked:
    """A question of the planner's. image: (height, width, 3) uint8 RGB, None if it was missed."""

    question: str
    reply: Reply
    image: NDArray[np.uint8] | None


@dataclass
class OrderRecord:
    """One order and how it ended.

    before, after: slots' contents when it began and ended (truth). outcome: DONE or FAILED, "" for
    neither. detail: the place, or the reason. questions: answers that the planner got, with the
    pictures they are about. shots: what the camera saw at each event.
    """

    order: str
    begun_s: float
    before: dict[str, Any]
    outcome: str = ""
    detail: str = ""
    ended_s: float = 0.0
    after: dict[str, Any] = field(default_factory=dict)
    questions: list[Asked] = field(default_factory=list)
    shots: list[tuple[str, Shot]] = field(default_factory=list)

    @property
    def right(self) -> bool:
        """Whether the item really stands where the planner says, and nothing else was moved."""
        place = parse_place(self.detail)
        if self.outcome != DONE or place is None or not self.before or not self.after:
            return False
        slot = SHELVES.index(place.shelf) * NUM_COLUMNS + place.slot - 1
        item = " ".join(self.order.split()[2:4])  # move the COLOUR KIND to ...
        others = [None if name == item else name for name in self.before["slots"]]
        left = [None if name == item else name for name in self.after["slots"]]
        return self.after["slots"][slot] == item and others == left and not self.after["held"]


class Watcher(Node):
    """Collects; ``step`` it until ``finished``."""

    def __init__(self) -> None:
        super().__init__("watcher", parameter_overrides=[Parameter("use_sim_time", value=True)])
        self.records: list[OrderRecord] = []
        self.refusals: list[str] = []
        self.lines: list[str] = []
        self.film: list[Shot] = []
        self._truth: dict[str, Any] = {}
        self._newest: Shot | None = None
        self._frames: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self._texts: dict[str, str] = {}
        self._ordered = 0
        self.create_subscription(String, "orders", self._on_order, _LATCHED)
        self.create_subscription(String, "pick_and_place/event", self._on_event, _LATCHED)
        self.create_subscription(String, "pick_and_place/refusal", self._on_refusal, _LATCHED)
        self.create_subscription(String, "sim_cell/truth", self._on_truth, 1)
        self.create_subscription(Image, "camera/image_raw", self._on_image, qos_profile_sensor_data)
        # Answers carry no question.
        self.create_subscription(Query, "vlm_node/query", self._on_query, 100)
        self._vlm = VlmClient(self, guard=None)
        self._vlm.subscribe(self._on_reply, guard=None)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)

    @property
    def finished(self) -> bool:
        """Whether every order has ended."""
        ended = [record for record in self.records if record.outcome]
        return 0 < self._ordered <= len(ended)

    def step(self) -> list[str]:
        """Handle what arrived; returns lines to show."""
        self._executor.spin_once(timeout_sec=_STEP_S)
        lines, self.lines = self.lines, []
        return lines

    def destroy_node(self) -> None:
        """Leave the executor first."""
        self._vlm.close()
        self._executor.shutdown()
        super().destroy_node()

    def _second(self) -> float:
        return max(0.0, self.get_clock().now().nanoseconds / 1e9 - START_S)

    def _on_order(self, _order: String) -> None:
        self._ordered += 1

    def _on_event(self, message: String) -> None:
        kind, _, text = message.data.partition(": ")
        self.lines.append(f"{self._second():6.1f} s  {message.data}")
        if kind == BEGUN:
            self.records.append(OrderRecord(text, self._second(), self._truth))
        if not self.records:
            return
        record = self.records[-1]
        if self._newest is not None:
            record.shots.append((message.data, self._newest))
        if kind == DONE:
            record.detail = text.rpartition("(")[2].removesuffix(")")
        elif kind == FAILED:
            record.detail = text.removeprefix(f"{record.order}: ")
        if kind in (DONE, FAILED):
            record.outcome, record.ended_s, record.after = kind, self._second(), self._truth

    def _on_refusal(self, message: String) -> None:
        self.refusals.append(message.data)
        self.lines.append(f"{self._second():6.1f} s  [yellow]not acting: {message.data}[/yellow]")

    def _on_truth(self, message: String) -> None:
        self._truth = json.loads(message.data)
        if self.records and not self.records[-1].before:  # the planner was faster than the truth
            self.records[-1].before = self._truth

    def _on_image(self, image: Image) -> None:
        second = to_ns(image.header.stamp) / 1e9 - START_S
        self._newest = Shot(second, to_rgb(image))
        self._frames[to_ns(image.header.stamp)] = self._newest.image
        while len(self._frames) > _KEPT_FRAMES:
            self._frames.popitem(last=False)
        if not self.film or second - self.film[-1].second >= _FRAME_PERIOD_S:
            self.film.append(self._newest)

    def _on_query(self, query: Query) -> None:
        self._texts[query.query_id] = query.text

    def _on_reply(self, reply: Reply) -> None:
        if self.records and not self.records[-1].outcome:
            image = self._frames.get(reply.stamp_ns)
            text = self._texts.get(reply.query_id, "")
            self.records[-1].questions.append(Asked(text, reply, image))
