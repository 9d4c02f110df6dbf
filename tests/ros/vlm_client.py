"""A client of the VLM node as an outsider would write it: rclpy and edge_atp_msgs, nothing else."""

from __future__ import annotations

import array
import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import rclpy
from builtin_interfaces.msg import Duration
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from edge_atp_msgs.msg import Answer, PatchMaskArray, PruneConfig, Query
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.context import Context
from rclpy.parameter import Parameter, parameter_value_to_python
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String
from waiting import PATIENCE_S, Spinner

QUESTION = "what is the gripper holding?"
VLM_NODE = ("-m", "edge_atp_ros.vlm_node")
# Longer than a sound node takes to say which image is its newest: that image was lost by then.
LOST_S = 5.0
MOST_SENT = 20
# An age that no image is younger than: a question with this limit is refused, and its refusal
# names the newest image.
NO_AGE = Duration(nanosec=1)
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
    """Publishes images and questions, collects everything the node says.

    Images are sent best effort: a machine that is too busy loses some. ``show`` and ``ask_about``
    send an image again until the node has it.
    """

    def __init__(self, node: str = "/vlm_node", camera: str = "/camera/image_raw") -> None:
        self._name = node
        self._context = Context()
        rclpy.init(context=self._context)
        self.node = rclpy.create_node(f"client_{next(_numbers)}", context=self._context)
        self._changed = threading.Condition()
        self.answers: list[Answer] = []
        self.masks: list[PatchMaskArray] = []
        self.diagnostics: dict[str, dict[str, str]] = {}
        self._services: dict[str, Any] = {}
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
        self._spinner = Spinner(self.node)

    def __enter__(self) -> VlmClient:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        self._spinner.stop()
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

    def is_heard(self) -> bool:
        """Whether a greeting gets its answer soon; one may be lost before its way back is open."""
        query_id = f"greeting-{next(_numbers)}"
        self.queries.publish(Query(query_id=query_id))
        with contextlib.suppress(AssertionError):
            self.answer_to(query_id, timeout_s=1.0)
            with self._changed:  # with the answers to earlier greetings that came late
                greetings = [a for a in self.answers if a.query_id.startswith("greeting-")]
                for answer in greetings:
                    self.answers.remove(answer)
            return True
        return False

    def settle(self) -> None:
        """Wait until the node, in whatever state, has matched all that this client has created.

        A service does not answer a client that it has not matched yet, and it matches this one, a
        publisher and a subscription, after those that were created before it.
        """
        probe = self._create_client(GetState, "get_state")
        self.wait(lambda: self._responds(probe), "the node has matched this client")

    def _responds(self, probe: Any) -> bool:
        future = probe.call_async(GetState.Request())
        with contextlib.suppress(AssertionError):
            return self.wait(future.done, "get_state", timeout_s=1.0)
        return False

    def wait(self, holds: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
        """Wait until ``holds`` returns something true; return it."""
        end = time.monotonic() + timeout_s
        with self._changed:
            while not (result := holds()):
                if time.monotonic() > end:
                    raise AssertionError(f"timeout after {timeout_s} s: {what}")
                self._changed.wait(0.05)
            return result

    def listen(self, kind: type, topic: str, qos: Any = 10) -> list[Any]:
        """Subscribe to what the node publishes; returns the list that fills up.

        Waits until the node has matched it.
        """
        received = self.listen_later(kind, topic, qos)
        self.wait(lambda: self.node.count_publishers(topic), f"publisher of {topic}")
        self.settle()
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

    def show(
        self, image: Image | CompressedImage, publisher: Any = None, cameras: Sequence[str] = ()
    ) -> int:
        """Publish an image, again if it is lost, until it is the newest that the node has.

        Args:
            publisher: of the image; by default the one of this client for its type.
            cameras: the camera it comes from, if the node has several.
        Returns:
            How often it was published.
        """
        publisher = publisher or (self.images if isinstance(image, Image) else self.compressed)
        for count in range(1, MOST_SENT + 1):
            publisher.publish(image)
            lost = time.monotonic() + LOST_S
            while time.monotonic() < lost:
                if self.newest_header(cameras) == image.header:
                    return count
        raise AssertionError(f"the node has not got the image of {image.header}")

    def newest_header(self, cameras: Sequence[str] = ()) -> Any:
        """The header of the newest image the node has; blank if it has none."""
        answer = self.ask(cameras=list(cameras), max_frame_age=NO_AGE)
        with self._changed:
            self.answers.remove(answer)
        return answer.header

    def ask_about(self, image: Image | CompressedImage, text: str = QUESTION, **fields: Any) -> Any:
        """Show the node an image, ask about it, and wait for the answer."""
        self.show(image, cameras=fields.get("cameras", ()))
        return self.ask(text, **fields)

    def answer_to(self, query_id: str, timeout_s: float = PATIENCE_S) -> Answer:
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
        """A value of the newest diagnostics that were published after this call."""
        asked_ns = self.node.get_clock().now().nanoseconds

        def published_since() -> dict[str, str] | None:
            known = self.diagnostics.get(name)
            return known if known and int(known["stamp_ns"]) > asked_ns else None

        return self.wait(published_since, f"diagnostics of {name}")[key]

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
        """Call a service of the node; returns its response."""
        if name not in self._services:
            # Kept: one that is destroyed while the thread is about to wait on it ends the thread.
            self._services[name] = self._create_client(kind, name)
            self.settle()
        future = self._services[name].call_async(request)
        return self.wait(future.result, f"service {name}")

    def _create_client(self, kind: Any, name: str) -> Any:
        client = self.node.create_client(kind, f"{self._name}/{name}")
        self.wait(client.service_is_ready, f"service {name} is there")
        return client

    def _collect(self, kind: type, topic: str, qos: Any, into: list[Any]) -> None:
        def store(message: Any) -> None:
            with self._changed:
                into.append(message)
                self._changed.notify_all()

        self.node.create_subscription(kind, topic, store, qos)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        stamp_ns = Time.from_msg(message.header.stamp).nanoseconds
        with self._changed:
            for status in message.status:
                values = {entry.key: entry.value for entry in status.values}
                values |= {"message": status.message, "stamp_ns": str(stamp_ns)}
                self.diagnostics[status.name] = values
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


def vlm_command(*parameters: str, program: Sequence[str] = VLM_NODE) -> list[str]:
    """The command line of a node with the default model that becomes active by itself.

    Args:
        parameters: ROS parameters, NAME:=VALUE.
        program: what Python runs.
    """
    command = [sys.executable, *program, "--ros-args"]
    for parameter in ("autostart:=true", "frame_wait:=1.0", *parameters):
        command += ["-p", parameter]
    return command


def start_vlm_node(
    start: Callable[..., Any], *parameters: str, program: Sequence[str] = VLM_NODE
) -> Any:
    """Start a node with fixture ``start_process`` (or its kin) and wait until it is active."""
    process = start(vlm_command(*parameters, program=program), name="vlm_node")
    process.wait_for("active: cameras")
    return process
