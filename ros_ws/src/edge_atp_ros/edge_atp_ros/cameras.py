"""The newest frames of each camera, and how many came and went.

The callbacks store the serialized message and nothing else; the worker decodes the one frame it
uses. Frames that nobody asks about then cost one copy, and a malformed message cannot disturb the
executor. With several cameras a few frames of each are kept, so that images taken at the same
time can be found.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image

from edge_atp_ros.frames import CameraImage, FrameSet, StoredFrame, read_stamp
from edge_atp_ros.matching import match

__all__ = ["BOTH", "TRANSPORTS", "CameraCounts", "CameraImage", "Cameras"]

RAW, COMPRESSED, BOTH = "raw", "compressed", "both"
TRANSPORTS = (BOTH, RAW, COMPRESSED)
# A frame stamped earlier than its predecessor came late, unless the clock was set back: networks
# delay by milliseconds, clocks are set back by more.
_LATE_NS = 1_000_000_000
# Of a camera's frames kept for matching; one 4K image has 25 MB.
_HISTORY_BYTES = 64 << 20


@dataclass(frozen=True)
class CameraCounts:
    """What became of a camera's frames.

    received: frames that arrived. dropped: those that no question was answered about and that a
        newer one replaced, or that came late. late: those with a stamp before an earlier frame's.
    last_s: ``time.monotonic()`` of the last arrival, None before the first.
    stamp_ns: of the newest frame, None without one.
    """

    received: int = 0
    dropped: int = 0
    last_s: float | None = None
    late: int = 0
    stamp_ns: int | None = None


@dataclass
class _Slot:
    """newest: the frame to answer about. recent: it and those before it with a readable stamp,
    oldest first. used: numbers of ``recent`` frames that were answered about.
    """

    newest: StoredFrame | None = None
    recent: deque[StoredFrame] = field(default_factory=deque)
    used: set[int] = field(default_factory=set)
    received: int = 0
    num_used: int = 0
    late: int = 0
    last_s: float | None = None

    def counts(self) -> CameraCounts:
        newest = self.newest
        waiting = newest is not None and newest.number not in self.used
        dropped = self.received - self.num_used - waiting
        stamp_ns = None if newest is None else newest.stamp_ns
        return CameraCounts(self.received, dropped, self.last_s, self.late, stamp_ns)

    def forget(self) -> None:
        self.newest = None
        self.recent.clear()
        self.used.clear()


class Cameras:
    """Subscriptions to every camera, and the newest frames of each.

    Args:
        names: what questions call the cameras.
        topics: image topic of each; `<topic>/compressed` carries its compressed images.
        transport: "raw", "compressed", or "both" (whichever arrives).
        depth: images that DDS keeps while the process is busy. The newest one wins all the same,
            because the callbacks only store; with a depth of 10, up to 6 of 100 images at 30 Hz
            were lost on a machine with four times more to do than cores. DDS takes memory for them
            when it first falls behind, and keeps it: 18 MB for 20 raw 640x480 images.
        history: frames of each camera that are kept for matching; without a tolerance one.
        tolerance_s: largest difference between the stamps of images used together; 0: the newest
            of each camera, whatever their stamps.
    """

    def __init__(
        self,
        names: Sequence[str],
        topics: Sequence[str],
        transport: str,
        depth: int,
        history: int = 1,
        tolerance_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.names = tuple(names)
        self._topics = tuple(topics)
        self._transport = transport
        # Best effort matches every publisher.
        self._qos = QoSProfile(depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._history = history if len(self.names) > 1 else 1
        self._tolerance_s = tolerance_s
        self._slots = {name: _Slot() for name in self.names}
        self._lock = threading.Lock()
        self._subscriptions: list[Subscription] = []
        self._on_frame: Callable[[str], None] = lambda _camera: None

    def subscribe(self, node: Node, on_frame: Callable[[str], None]) -> None:
        """Start listening; frames from before are forgotten, counts are kept.

        Args:
            on_frame: called with a camera's name when it has a new newest frame.
        """
        self.forget()
        self._on_frame = on_frame
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
        self.forget()

    def forget(self) -> None:
        """Release the frames; the next ones are new, whatever their stamps."""
        with self._lock:
            for slot in self._slots.values():
                slot.forget()

    def counts(self) -> dict[str, CameraCounts]:
        """Counts of each camera so far."""
        with self._lock:
            return {name: slot.counts() for name, slot in self._slots.items()}

    def dropped(self) -> dict[str, int]:
        """Frames of each camera that were replaced unused so far."""
        return {name: counts.dropped for name, counts in self.counts().items()}

    def newest(self, names: Sequence[str]) -> FrameSet | None:
        """The newest frames of these cameras that belong together, in this order.

        Returns:
            None if a camera has sent none, or none that matches the others'.
        """
        with self._lock:
            slots = [self._slots[name] for name in names]
            newest = tuple(slot.newest for slot in slots if slot.newest is not None)
            if len(newest) < len(slots):
                return None
            tolerance_ns = round(self._tolerance_s() * 1e9)
            if len(slots) == 1 or tolerance_ns <= 0:
                return newest
            recent = [list(slot.recent) for slot in slots]
        stamps = [[frame.stamp_ns or 0 for frame in frames] for frames in recent]
        choice = match(stamps, tolerance_ns)
        if choice is None:
            return None
        return tuple(frames[i] for frames, i in zip(recent, choice, strict=True))

    def silent(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of the cameras that have sent no frame."""
        with self._lock:
            return tuple(name for name in names if self._slots[name].newest is None)

    def use(self, frames: FrameSet) -> None:
        """Count these frames as answered about."""
        with self._lock:
            for frame in frames:
                slot = self._slots[frame.camera]
                if frame.number not in slot.used:
                    slot.num_used += 1
                    slot.used.add(frame.number)

    def _listen(self, node: Node, name: str, message_type: type, topic: str) -> None:
        def store(serialized: bytes) -> None:
            if self._store(name, serialized, message_type):
                self._on_frame(name)

        self._subscriptions.append(
            node.create_subscription(message_type, topic, store, self._qos, raw=True)
        )

    def _store(self, name: str, serialized: bytes, message_type: type) -> bool:
        """Keep a message; False if it came too late to be the newest."""
        stamp_ns = read_stamp(serialized)
        with self._lock:
            slot = self._slots[name]
            slot.received += 1
            slot.last_s = time.monotonic()
            previous_ns = slot.recent[-1].stamp_ns if slot.recent else None
            if stamp_ns is not None and previous_ns is not None and stamp_ns < previous_ns:
                if previous_ns - stamp_ns <= _LATE_NS:
                    slot.late += 1
                    return False
                slot.recent.clear()
            frame = StoredFrame(name, slot.received, stamp_ns, serialized, message_type)
            slot.newest = frame
            if stamp_ns is not None:
                slot.recent.append(frame)
                self._trim(slot, stamp_ns)
            return True

    def _trim(self, slot: _Slot, newest_ns: int) -> None:
        # A frame that old matches nothing that is still on its way: its camera is out of step.
        while newest_ns - (slot.recent[0].stamp_ns or 0) > _LATE_NS:
            slot.recent.popleft()
        most = self._history if self._tolerance_s() > 0 else 1
        size = sum(len(frame.serialized) for frame in slot.recent)
        while len(slot.recent) > most or (len(slot.recent) > 1 and size > _HISTORY_BYTES):
            size -= len(slot.recent.popleft().serialized)
        # A frame shared by several questions may still be used once it is no longer recent.
        if len(slot.used) > 4 * self._history + 64:
            slot.used = {n for n in slot.used if n > slot.received - 2 * self._history - 32}
