"""A client of the VLM node as an outsider would write it: rclpy and edge_atp_msgs, nothing else."""

from __future__ import annotations

import array
import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from edge_atp_msgs.msg import Answer, PatchMaskArray, PruneConfig, Query
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter, parameter_value_to_python
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

TIMEOUT_S = 120.0
QUESTION = "what is the gripper holding?"
_numbers = itertools.count(1)


def make_image(pixels: np.ndarray, encoding: str = "rgb8", frame_id: str = "cam") -> Image:
    """An Image of (height, width, channels) pixels, with a stamp no other image has."""
    height, width = pixels.shape[:2]
    data = np.ascontiguousarray(pixels).tobytes()
    image = Image(height=height, width=width, encoding=encoding, step=len(data) // height)
    image.data = array.array("B", data)
    image.header = next_header(frame_id)
    return image


def make_compressed(data: bytes, kind: str) -> CompressedImage:
    image = CompressedImage(format=kind, data=array.array("B", data))
    image.header = next_header("cam")
    return image


def next_header(frame_id: str) -> Any:
    number = next(_numbers)
    header = Image().header
    header.stamp.sec, header.stamp.nanosec, header.frame_id = 1000 + number, number, frame_id
    return header


def pattern(height: int = 480, width: int = 640, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8 with smooth colours, so that chroma subsampling keeps them."""
    rows, cols = np.mgrid[0:height, 0:width]
    phase = np.random.default_rng(seed).uniform(0, 6, 6)
    channels = [
        128 + 100 * np.sin(rows / height * 7 + phase[c]) * np.cos(cols / width * 5 + phase[c + 3])
        for c in range(3)
    ]
    return np.stack(channels, axis=-1).astype(np.uint8)


def bits(mask: Any) -> np.ndarray:
    """(rows, cols) bool of a PatchMask."""
    packed = np.array(mask.kept, dtype=np.uint8)
    flat = np.unpackbits(packed, count=mask.grid_rows * mask.grid_cols)
    return flat.reshape(mask.grid_rows, mask.grid_cols).astype(bool)


class VlmClient:
    """Publishes images and questions, collects everything the node says."""

    def __init__(self, node: str = "/vlm_node", camera: str = "/camera/image_raw") -> None:
        self._name = node
        self._context = Context()
        rclpy.init(context=self._context)
        self.node = rclpy.create_node(f"client_{next(_numbers)}", context=self._context)
        self._changed = threading.Condition()
        self.answers: list[Answer] = []
        self.partials: list[Answer] = []
        self.masks: list[PatchMaskArray] = []
        self.diagnostics: dict[str, dict[str, str]] = {}
        self.status_listeners: list[Callable[[DiagnosticStatus], None]] = []
        deep = QoSProfile(depth=2000)
        # In this order: see ``wait_until_active``.
        self._collect(PatchMaskArray, f"{node}/patch_mask", deep, self.masks)
        self._collect(Answer, f"{node}/answer", deep, self.answers)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.images = self.node.create_publisher(Image, camera, qos_profile_sensor_data)
        self.compressed = self.node.create_publisher(
            CompressedImage, f"{camera}/compressed", qos_profile_sensor_data
        )
        self.texts = self.node.create_publisher(String, f"{node}/query_text", deep)
        self.queries = self.node.create_publisher(Query, f"{node}/query", deep)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._executor.shutdown()
        self._thread.join(5.0)
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)

    def wait_until_active(self) -> None:
        """Wait until the node has matched every publisher and subscription of this client.

        What this side has matched, the other side may match later, and images sent before that
        are lost. The other side matches in the order in which things were created here, so an
        answer to a greeting (a refusal, as it is empty) tells that all before them are matched.
        """
        publishers = (self.images, self.compressed, self.queries, self.texts)
        self.wait(lambda: all(p.get_subscription_count() for p in publishers), "node is active")
        topics = (f"{self._name}/answer", f"{self._name}/patch_mask", "/diagnostics")
        self.wait(lambda: all(self.node.count_publishers(t) for t in topics), "node publishes")
        self.wait(self.is_heard, "the node answers")

    def is_heard(self, publisher: Any = None) -> bool:
        """Whether a greeting gets its answer soon; one may be lost before its way back is open.

        Args:
            publisher: of questions, to greet with; the client's own by default.
        """
        query_id = f"greeting-{next(_numbers)}"
        (publisher or self.queries).publish(Query(query_id=query_id))
        with contextlib.suppress(AssertionError):
            self.answer_to(query_id, timeout_s=1.0)
            with self._changed:  # with the answers to earlier greetings that came late
                greetings = [a for a in self.answers if a.query_id.startswith("greeting-")]
                for answer in greetings:
                    self.answers.remove(answer)
            return True
        return False

    def wait(self, holds: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> Any:
        """Wait until ``holds`` returns something true; return it."""
        end = time.monotonic() + timeout_s
        with self._changed:
            while not (result := holds()):
                if time.monotonic() > end:
                    raise AssertionError(f"timeout after {timeout_s} s: {what}")
                self._changed.wait(0.05)
            return result

    def listen(self, kind: type, topic: str, qos: Any = 10) -> list[Any]:
        """Subscribe to what the active node publishes; returns the list that fills up.

        Waits until the node has matched it: a publisher created after it has been, by then.
        """
        received = self.listen_later(kind, topic, qos)
        self.wait(lambda: self.node.count_publishers(topic), f"publisher of {topic}")
        later = self.node.create_publisher(Query, f"{self._name}/query", 10)
        try:
            self.wait(lambda: self.is_heard(later), f"the node has matched {topic}")
        finally:
            self.node.destroy_publisher(later)
        return received

    def listen_later(self, kind: type, topic: str, qos: Any = 200) -> list[Any]:
        """Subscribe to what nobody publishes yet; returns the list that fills up."""
        received: list[Any] = []
        self._collect(kind, topic, qos, received)
        return received

    def send(self, text: str = QUESTION, **fields: Any) -> str:
        """Publish a question; returns its id."""
        prune = fields.pop("prune", None)
        query_id = fields.pop("query_id", f"test-{next(_numbers)}")
        query = Query(query_id=query_id, text=text, **fields)
        if prune:
            query.prune = PruneConfig(**prune)
        self.queries.publish(query)
        return query_id

    def send_text(self, text: str) -> None:
        self.texts.publish(String(data=text))

    def ask(self, text: str = QUESTION, **fields: Any) -> Answer:
        """Publish a question and wait for its answer."""
        return self.answer_to(self.send(text, **fields))

    def ask_about(self, image: Image | CompressedImage, text: str = QUESTION, **fields: Any) -> Any:
        """Publish an image, then a question about it, and wait for the answer.

        On its own topic, the question may overtake the image; then it is asked again.
        """
        publisher = self.images if isinstance(image, Image) else self.compressed
        publisher.publish(image)
        end = time.monotonic() + TIMEOUT_S
        while True:
            answer = self.ask(text, **fields)
            overtook = answer.error_code in (Answer.ERROR_NONE, Answer.ERROR_NO_FRAME)
            if not overtook or answer.header == image.header or time.monotonic() > end:
                return answer
            self.answers.remove(answer)

    def answer_to(self, query_id: str, timeout_s: float = TIMEOUT_S) -> Answer:
        return self.wait(
            lambda: next((a for a in self.answers if a.query_id == query_id), None),
            f"answer to {query_id}",
            timeout_s,
        )

    def mask_of(self, answer: Answer) -> PatchMaskArray:
        key = (answer.query_id, answer.sequence)
        return self.wait(
            lambda: next((m for m in self.masks if (m.query_id, m.sequence) == key), None),
            f"mask of {key}",
        )

    def diagnostic(self, name: str, key: str) -> str:
        """A value of the newest diagnostics that arrive after this call."""
        with self._changed:
            self.diagnostics.pop(name, None)
        return self.wait(lambda: self.diagnostics.get(name), f"diagnostics of {name}")[key]

    def set_parameter(self, name: str, value: Any) -> Any:
        """Set a parameter of the node; returns the SetParametersResult."""
        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg()]
        )
        return self.call(SetParameters, "set_parameters", request).results[0]

    def get_parameter(self, name: str) -> Any:
        """The value of a parameter of the node."""
        request = GetParameters.Request(names=[name])
        value = self.call(GetParameters, "get_parameters", request).values[0]
        return parameter_value_to_python(value)

    def change_state(self, transition: int) -> bool:
        request = ChangeState.Request()
        request.transition.id = transition
        return self.call(ChangeState, "change_state", request).success

    def state(self) -> str:
        return self.call(GetState, "get_state", GetState.Request()).current_state.label

    def call(self, kind: Any, name: str, request: Any) -> Any:
        client = self.node.create_client(kind, f"{self._name}/{name}")
        assert client.wait_for_service(TIMEOUT_S), f"no service {name}"
        future = client.call_async(request)
        try:
            return self.wait(future.result, f"service {name}")
        finally:
            self.node.destroy_client(client)

    def _collect(self, kind: type, topic: str, qos: Any, into: list[Any]) -> None:
        def store(message: Any) -> None:
            with self._changed:
                into.append(message)
                self._changed.notify_all()

        self.node.create_subscription(kind, topic, store, qos)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        with self._changed:
            for status in message.status:
                values = {entry.key: entry.value for entry in status.values}
                self.diagnostics[status.name] = values | {"message": status.message}
                for listener in self.status_listeners:
                    listener(status)
            self._changed.notify_all()


def assert_answers(client: VlmClient, answer: Answer, image: Any) -> None:
    """What every complete answer must satisfy."""
    assert answer.status in (Answer.STATUS_FINAL, Answer.STATUS_TRUNCATED), answer.error_msg
    assert answer.error_code == Answer.ERROR_NONE
    assert answer.header == image.header
    assert list(answer.frame_stamps) == [image.header.stamp]
    assert answer.cameras == ["camera"]
    mask_array = client.mask_of(answer)
    assert mask_array.header == image.header
    (mask,) = mask_array.masks
    assert answer.tokens.visual_total == mask.grid_rows * mask.grid_cols
    assert answer.tokens.visual_kept == bits(mask).sum()
    latency = answer.latency
    stages = (
        latency.queue_wait
        + latency.preprocess
        + latency.vision_encode
        + latency.prune
        + latency.prefill
        + latency.decode
    )
    assert stages == pytest.approx(latency.total, rel=0.05)
    assert 0 < latency.first_token <= latency.total


def start_vlm_node(start: Callable[..., Any], *parameters: str) -> Any:
    """Start the node with the default model and wait until it is active."""
    command = [sys.executable, "-m", "edge_atp_ros.vlm_node", "--ros-args"]
    for parameter in ("autostart:=true", "frame_wait:=1.0", *parameters):
        command += ["-p", parameter]
    process = start(command, name="vlm_node")
    process.wait_for("active: cameras")
    return process
