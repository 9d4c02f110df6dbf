"""Asks the questions of a bag while it is played: what `edge-atp replay` does offline.

Each question stands (SetQuery) from its second ``at`` of the recording to its second ``until``, so
that the node answers about as many frames as it manages; one of mode `once` is asked once. Writes
answers and masks into a result bag, on the node's own topics, and ends with the recording. Exit
code 1: an answer was not the expected one, or a question got none.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter, defaultdict
from pathlib import Path

from edge_atp_msgs.msg import Answer, PruneConfig
from rclpy.node import Node
from rclpy.serialization import serialize_message

from edge_atp.errors import EdgeAtpError
from edge_atp.replay.interfaces import ANSWER, MASKS, load_typestore
from edge_atp.replay.questions import STANDING, ReplayQuestion, load_questions
from edge_atp.replay.result_bag import ResultBag
from edge_atp.types import PruneSpec
from edge_atp_ros.client import Reply, VlmClient
from edge_atp_ros.declaring import declare
from edge_atp_ros.process import StartError
from edge_atp_ros.recording import Recording, RecordingError

NODE_NAME = "bag_questions"
_POLL_S = 0.01
_LAST_ANSWERS_S = 1.0
_STALLED_S = 60.0
_SLACK_S = 1e-3


class BagQuestions(Node):
    """See the module's docstring.

    Raises:
        StartError: the bag, the questions or the result's place is unusable.
    """

    def __init__(self) -> None:
        super().__init__(NODE_NAME)
        bag = declare(self, "bag", "", "rosbag2 that is played: its start and its length")
        queries = declare(self, "queries", "", "YAML of questions, as for edge-atp replay")
        out = declare(self, "out", "", "result bag; empty: none")
        try:
            self._questions = load_questions(Path(queries))
            with Recording(bag) as recording:
                self._start_ns, self._duration_s = recording.start_ns, recording.duration_s
            self._topics = {
                kind: self.resolve_topic_name(f"~/{name}")
                for kind, name in ((MASKS, "patch_mask"), (ANSWER, "answer"))
            }
            self._result = self._open(Path(out)) if out else None
        except (EdgeAtpError, RecordingError) as error:
            raise StartError(str(error)) from error
        self._by_id = {question.query.query_id: question for question in self._questions}
        self._texts: dict[str, Counter[str]] = defaultdict(Counter)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._vlm = VlmClient(self, "~", guard=None, timeout_s=_STALLED_S)
        self._vlm.subscribe(self._on_reply, guard=None)
        self._thread = threading.Thread(target=self._run, name="questions", daemon=True)
        self.finished, self.exit_code = False, 0

    def start(self) -> None:
        """Begin to follow the recording."""
        self._thread.start()

    def destroy_node(self) -> None:
        """End the thread; a result that is not complete is not written."""
        if hasattr(self, "_thread"):
            self._stopping.set()
            self._vlm.close()
            if self._thread.is_alive():
                self._thread.join()
        super().destroy_node()

    def _open(self, path: Path) -> ResultBag:
        return ResultBag(path, load_typestore(), {t: kind for kind, t in self._topics.items()})

    def _run(self) -> None:
        try:
            completed = self._follow()
            self._finish(completed)
        except EdgeAtpError as error:
            self.get_logger().error(str(error))
            self.exit_code = 1
        except Exception:
            self.get_logger().error(traceback.format_exc())
            self.exit_code = 1
        self.finished = True

    def _follow(self) -> bool:
        """Set and withdraw the questions at their times; False if stopped before the end."""
        waiting, standing = list(self._questions), []
        moved_s, second = time.monotonic(), -1.0
        while second < self._duration_s - _SLACK_S and not self._stopping.wait(_POLL_S):
            now = (self._vlm.now_ns() - self._start_ns) / 1e9
            if now != second:
                moved_s, second = time.monotonic(), now
            elif second >= 0 and time.monotonic() - moved_s > _STALLED_S:
                raise EdgeAtpError(f"the recording stands still at {second:.1f} s; has it ended?")
            for question in [q for q in waiting if second >= 0 and q.at_s <= second]:
                waiting.remove(question)
                if self._begin(question):
                    standing.append(question)
            for question in [q for q in standing if q.until_s < second]:
                standing.remove(question)
                self._vlm.withdraw(question.query.query_id)
        if self._stopping.is_set():
            return False
        self._stopping.wait(_LAST_ANSWERS_S)
        for question in standing:
            self._vlm.withdraw(question.query.query_id)
        return True

    def _begin(self, question: ReplayQuestion) -> bool:
        """Ask; True if the question stands now and has to be withdrawn."""
        query = question.query
        self.get_logger().info(f"{question.at_s:.1f} s: {query.text}")
        if question.mode != STANDING:
            self._vlm.ask_choice_async(
                query.text,
                query.choices,
                query_id=query.query_id,
                cameras=question.cameras,
                max_new_tokens=query.max_new_tokens,
                prune=to_prune_config(query.prune),
            )
            return False
        self._vlm.stand(
            query.text,
            query_id=query.query_id,
            max_rate_hz=question.max_rate_hz,
            choices=query.choices,
            cameras=question.cameras,
            max_new_tokens=query.max_new_tokens,
            prune=to_prune_config(query.prune),
        )
        return True

    def _on_reply(self, reply: Reply) -> None:
        question = self._by_id.get(reply.query_id)
        if question is None or reply.answer.status == Answer.STATUS_CANCELED:
            return  # somebody else's, or under way when its question was withdrawn
        answer = reply.answer
        second = (reply.stamp_ns - self._start_ns) / 1e9
        # The newest frame may be from just before the question's time, or from just after it.
        if not question.at_s - _SLACK_S <= second <= question.until_s + _SLACK_S:
            return
        with self._lock:
            final = answer.status == Answer.STATUS_FINAL
            text = reply.text if final else answer.error_msg or f"status {answer.status}"
            self._texts[reply.query_id][text] += 1
            if self._result is None:
                return
            if reply.masks is not None:
                self._write(MASKS, reply.stamp_ns, serialize_message(reply.masks))
            self._write(ANSWER, reply.stamp_ns, serialize_message(answer))

    def _write(self, kind: str, time_ns: int, serialized: bytes) -> None:
        assert self._result is not None  # the caller has looked
        self._result.write_serialized(self._topics[kind], time_ns, serialized)

    def _finish(self, completed: bool) -> None:
        """Close the result and say how it went."""
        with self._lock:
            result, self._result = self._result, None
        if result is not None:
            kind = None if completed else InterruptedError
            result.__exit__(kind, None, None)
        if not completed:
            return
        for question in self._questions:
            texts = self._texts[question.query.query_id]
            shown = ", ".join(f"{text} x{n}" for text, n in texts.most_common()) or "no answer"
            line = f"{question.query.text} {shown}"
            right = texts[question.expect] if question.expect is not None else texts.total()
            if right < texts.total() or not texts:
                self.exit_code = 1
                expected = f" (expected {question.expect})" if question.expect else ""
                self.get_logger().error(f"{line}{expected}")
            else:
                self.get_logger().info(line)
        if result is not None:
            self.get_logger().info(f"result: {result.path}")


def to_prune_config(spec: PruneSpec) -> PruneConfig:
    """What a question of the core asks of pruning, as a message. Knows no latency budget, which
    a question of a bag cannot have.
    """
    return PruneConfig(
        policy=spec.policy.value,
        method=spec.method,
        keep_ratio=float(spec.keep_ratio),
        max_visual_tokens=spec.max_visual_tokens,
        score_mass=float(spec.score_mass),
        alpha=-1.0 if spec.alpha is None else float(spec.alpha),
    )
