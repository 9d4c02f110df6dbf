"""The newest frame of each camera, and how many came and went.

The callbacks store the serialized message and nothing else; the worker decodes the one frame it
uses. Frames that nobody asks about then cost one copy, and a malformed message cannot disturb the
executor.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from edge_atp.errors import ImageError
from edge_atp.types import Frame
from edge_atp_ros.convert import to_ns
from edge_atp_ros.images import to_rgb

RAW, COMPRESSED, BOTH = "raw", "compressed", "both"
TRANSPORTS = (BOTH, RAW, COMPRESSED)


@dataclass(frozen=True)
class CameraImage:
    """One image as it arrived: the message decoded, the pixels not yet."""

    camera: str
    message: Image | CompressedImage

    @property
    def header(self) -> Header:
        """Stamp and frame id as the camera gave them."""
        return self.message.header

    @property
    def stamp_ns(self) -> int:
        """Capture time by the publisher's clock."""
        return to_ns(self.message.header.stamp)

    def frame(self) -> Frame:
        """The pixels, converted to RGB.

        Raises:
            ImageError: empty, truncated or in an encoding that is not supported.
        """
        pixels = to_rgb(self.message)
        return Frame(pixels, self.stamp_ns, self.message.header.frame_id, self.camera)


@dataclass(frozen=True)
class CameraCounts:
    """received: frames that arrived. dropped: those replaced by a newer one before any use.
    last_s: ``time.monotonic()`` of the last arrival, None before the first.
    """

    received: int = 0
    dropped: int = 0
    last_s: float | None = None


@dataclass
class _Slot:
    counts: CameraCounts = field(default_factory=CameraCounts)
    serialized: bytes | None = None
    message_type: type = Image
    used: bool = False


class Cameras:
    """Subscriptions to every camera, and the newest frame of each.

    Args:
        names: what questions call the cameras.
        topics: image topic of each; `<topic>/compressed` carries its compressed images.
        transport: "raw", "compressed", or "both" (whichever arrives).
        depth: images that DDS keeps while the process is busy. The newest one wins all the same,
            because the callbacks only store; with a depth of 10, up to 6 of 100 images at 30 Hz
            were lost on a machine with four times more to do than cores.
    """

    def __init__(
        self, names: Sequence[str], topics: Sequence[str], transport: str, depth: int
    ) -> None:
        self.names = tuple(names)
        self._topics = tuple(topics)
        self._transport = transport
        # Best effort matches every publisher.
        self._qos = QoSProfile(depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._slots = {name: _Slot() for name in self.names}
        self._arrived = threading.Condition()
        self._subscriptions: list[Subscription] = []

    def subscribe(self, node: Node) -> None:
        """Start listening; frames from before are forgotten, counts are kept."""
        for slot in self._slots.values():
            slot.serialized = None
        for name, topic in zip(self.names, self._topics, strict=True):
            base = topic.removesuffix("/compressed")
            if self._transport in (BOTH, RAW):
                self._listen(node, name, Image, base)
            if self._transport in (BOTH, COMPRESSED):
                self._listen(node, name, CompressedImage, f"{base}/compressed")

    def unsubscribe(self, node: Node) -> None:
        """Stop listening and release the frames."""
        for subscription in self._subscriptions:
            node.destroy_subscription(subscription)
        self._subscriptions.clear()
        with self._arrived:
            for slot in self._slots.values():
                slot.serialized = None

    def counts(self) -> dict[str, CameraCounts]:
        """Counts of each camera so far."""
        with self._arrived:
            return {name: slot.counts for name, slot in self._slots.items()}

    def dropped(self) -> dict[str, int]:
        """Frames of each camera that were replaced unused so far."""
        return {name: counts.dropped for name, counts in self.counts().items()}

    def wait(
        self, names: Sequence[str], until_s: float, should_stop: Callable[[], bool]
    ) -> tuple[str, ...]:
        """Wait until every named camera has sent a frame.

        Args:
            names: cameras.
            until_s: ``time.perf_counter()`` at which to give up.
            should_stop: asked every 50 ms; True gives up too.
        Returns:
            The cameras that have sent none.
        """
        with self._arrived:
            while missing := tuple(n for n in names if self._slots[n].serialized is None):
                remaining_s = until_s - time.perf_counter()
                if remaining_s <= 0 or should_stop():
                    return missing
                self._arrived.wait(min(remaining_s, 0.05))
            return ()

    def newest(self, name: str) -> CameraImage:
        """The newest frame of a camera that has sent one.

        Raises:
            ImageError: the message is malformed.
        """
        with self._arrived:
            slot = self._slots[name]
            slot.used = True
            serialized, message_type = slot.serialized, slot.message_type
        if serialized is None:
            raise ImageError(f"camera {name!r} stopped before its frame was read")
        try:
            return CameraImage(name, deserialize_message(serialized, message_type))
        except Exception as error:  # the middleware documents no error class
            raise ImageError(
                f"camera {name!r} sent a malformed {message_type.__name__} message"
                f" ({len(serialized)} bytes): {error}"
            ) from error

    def _listen(self, node: Node, name: str, message_type: type, topic: str) -> None:
        def store(serialized: bytes) -> None:
            self._store(name, serialized, message_type)

        self._subscriptions.append(
            node.create_subscription(message_type, topic, store, self._qos, raw=True)
        )

    def _store(self, name: str, serialized: bytes, message_type: type) -> None:
        with self._arrived:
            slot = self._slots[name]
            unused = slot.serialized is not None and not slot.used
            slot.counts = replace(
                slot.counts,
                received=slot.counts.received + 1,
                dropped=slot.counts.dropped + unused,
                last_s=time.monotonic(),
            )
            slot.serialized, slot.message_type, slot.used = serialized, message_type, False
            self._arrived.notify_all()
