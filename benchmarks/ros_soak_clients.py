"""Those who ask the node in a soak, what they were answered, and what is wrong with it.

See ros_soak.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict

from edge_atp_msgs.action import Ask
from edge_atp_msgs.msg import Answer, PatchMaskArray, Query
from rclpy.action import ActionClient
from rclpy.node import Node
from rclpy.qos import QoSProfile

from benchmarks.ros_bench import NODE

CAMERAS = ("c0", "c1", "c2", "c3")
TEXTS = ("what is the gripper holding?", "where is the red box?", "is there a blue drum?")
STANDING = {"standing-0": ("c0",), "standing-1": ("c1",)}
COMPLETE = frozenset({Answer.STATUS_FINAL, Answer.STATUS_TRUNCATED})
# The last three digits of a stamp name the camera, so that a header cannot be another's.
MARK = 100
_GREETING, _GREETING_S = "greeting", 0.5
_GOAL_EVERY = 25
_TWO_CAMERAS_EVERY = 10
_DEEP = QoSProfile(depth=5000)


class Clients:
    """Everyone who wants something from the node, in one process.

    num_finals: final answers so far. num_accepted: of those, to questions asked once and accepted.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self.asked: dict[str, tuple[str, ...]] = {}
        self.finals: dict[str, list[Answer]] = defaultdict(list)
        self.masks: dict[tuple[str, int], PatchMaskArray] = {}
        self.results: dict[str, Answer] = {}
        self.num_finals = self.num_accepted = 0
        self._goals: dict[str, object] = {}
        self._greeted_s = -math.inf
        node.create_subscription(Answer, f"{NODE}/answer", self._on_answer, _DEEP)
        node.create_subscription(PatchMaskArray, f"{NODE}/patch_mask", self._on_mask, _DEEP)
        self._queries = node.create_publisher(Query, f"{NODE}/query", _DEEP)
        self._action = ActionClient(node, Ask, f"{NODE}/ask")

    def ready(self) -> bool:
        """Whether the node hears and is heard: an empty question has been refused.

        What this side has matched, the other side matches a moment later; until then questions
        and answers are lost, so it is asked again every half second.
        """
        if not (self._queries.get_subscription_count() and self._action.server_is_ready()):
            return False
        if time.monotonic() - self._greeted_s > _GREETING_S:
            self._greeted_s = time.monotonic()
            self._queries.publish(Query(query_id=_GREETING))
        return _GREETING in self.finals

    def ask(self, number: int) -> str:
        """Ask the question of a number; returns its id."""
        query_id = f"q{number}"
        cameras = (CAMERAS[number % len(CAMERAS)],)
        if number % _TWO_CAMERAS_EVERY == 0:
            cameras += (CAMERAS[(number + 1) % len(CAMERAS)],)
        self.asked[query_id] = cameras
        query = Query(
            query_id=query_id,
            text=TEXTS[number % len(TEXTS)],
            cameras=list(cameras),
            priority=number % 3,
        )
        if number % _GOAL_EVERY:
            self._queries.publish(query)
        else:  # in the executor: rclpy's action client loses responses otherwise
            self._node.executor.create_task(self._send_goal, query)
        return query_id

    def unanswered(self) -> list[str]:
        """Questions whose answer has not come, and goals whose result has not."""
        goals = [f"q{n}" for n in range(0, len(self.asked), _GOAL_EVERY) if f"q{n}" in self.asked]
        missing = [query_id for query_id in goals if query_id not in self.results]
        return missing + [query_id for query_id in self.asked if query_id not in self.finals]

    def faults(self) -> list[str]:
        """What is wrong with what has come."""
        found = []
        for query_id, cameras in self.asked.items():
            answers = self.finals[query_id]
            if len(answers) != 1:
                found.append(f"{query_id}: {len(answers)} final answers")
            elif (result := self.results.get(query_id)) is not None and result != answers[0]:
                found.append(f"{query_id}: the goal's result is another than the topic's answer")
            for answer in answers:
                found += self._faults_of(answer, cameras)
        for query_id, cameras in STANDING.items():
            sequences = [answer.sequence for answer in self.finals[query_id]]
            if sequences != sorted(set(sequences)):
                found.append(f"{query_id}: sequence numbers do not rise")
            for answer in self.finals[query_id]:
                found += self._faults_of(answer, cameras)
        return found

    def _faults_of(self, answer: Answer, cameras: tuple[str, ...]) -> list[str]:
        name = f"{answer.query_id} sequence {answer.sequence}"
        if answer.status not in COMPLETE:
            rejected = answer.error_code in (Answer.ERROR_REJECTED, Answer.ERROR_NO_FRAME)
            return [] if rejected else [f"{name}: {answer.error_msg or answer.status}"]
        found = []
        if tuple(answer.cameras) != cameras:
            found.append(f"{name}: about {list(answer.cameras)}, asked about {list(cameras)}")
        marks = [stamp.nanosec % 1000 for stamp in answer.frame_stamps]
        if marks != [MARK + CAMERAS.index(camera) for camera in cameras]:
            found.append(f"{name}: stamps that these cameras did not publish: {marks}")
        if answer.header.frame_id not in cameras:
            found.append(f"{name}: frame {answer.header.frame_id!r}")
        mask = self.masks.get((answer.query_id, answer.sequence))
        if mask is None or mask.header != answer.header:
            found.append(f"{name}: no mask of its header")
        return found

    def _send_goal(self, query: Query) -> None:
        sent = self._action.send_goal_async(Ask.Goal(query=query))
        sent.add_done_callback(lambda future: self._on_accepted(future.result(), query.query_id))

    def _on_accepted(self, handle: object, query_id: str) -> None:
        def store(future: object) -> None:
            self.results[query_id] = future.result().result.answer
            del self._goals[query_id]

        self._goals[query_id] = handle  # rclpy itself keeps only a weak reference
        handle.get_result_async().add_done_callback(store)

    def _on_answer(self, answer: Answer) -> None:
        self.finals[answer.query_id].append(answer)
        self.num_finals += 1
        self.num_accepted += answer.query_id in self.asked and _is_accepted(answer)

    def _on_mask(self, mask: PatchMaskArray) -> None:
        for one in mask.masks:  # the scores are most of it, and 10,000 of them would weigh
            one.scores = []
        self.masks[mask.query_id, mask.sequence] = mask


def _is_accepted(answer: Answer) -> bool:
    return answer.error_code != Answer.ERROR_REJECTED
