"""Plays a recorded bag with its original timing, in place of a camera.

Publishes the recorded bytes; only the stamp is rewritten. With `restamp` (the default) each
message carries the time at which it is published, so that freshness checks work. With
`publish_clock` the recorded stamps stay, and the recording's time is published on /clock for
nodes with use_sim_time.
"""

from __future__ import annotations

import threading
import time

from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock

from edge_atp_ros.convert import to_stamp
from edge_atp_ros.declaring import declare
from edge_atp_ros.process import StartError
from edge_atp_ros.recording import RecordedMessage, Recording, RecordingError, restamp

NODE_NAME = "bag_player"
_PUBLISHER_DEPTH = 50  # what a subscriber on a busy machine may lag behind
_FLUSH_S = 5.0
_CLOCK_PERIOD_S = 0.01
_PROGRESS_PERIOD_S = 5.0


class BagPlayer(Node):
    """See the module's docstring.

    Raises:
        StartError: the bag or a parameter is unusable.
    """

    def __init__(self) -> None:
        super().__init__(NODE_NAME)
        self._bag = declare(self, "bag", "", "rosbag2 folder or file to play")
        self._rate = declare(self, "rate", 1.0, "speed relative to the recording", 0.01, 100.0)
        self._start_delay_s = declare(
            self,
            "start_delay",
            0.0,
            "seconds between the first subscriber and the first message",
            0.0,
            3600.0,
        )
        self._wait_s = declare(
            self,
            "wait_for_subscriber",
            0.0,
            "longest wait for a first subscriber to a recorded topic, seconds",
            0.0,
            3600.0,
        )
        self._loop = declare(self, "loop", False, "start again at the end")
        self._restamp = declare(self, "restamp", True, "set each stamp to the time of publishing")
        self._with_clock = declare(self, "publish_clock", False, "publish the recording's time")
        if self._with_clock and self._restamp:
            raise StartError("publish_clock and restamp exclude each other; switch one off")
        try:
            self._recording = Recording(self._bag)
        except RecordingError as error:
            raise StartError(str(error)) from error
        self._publishers_by_topic = {
            topic.name: self._create(topic.name, topic.message_type, topic.latched)
            for topic in self._recording.topics.values()
        }
        self._clock_publisher = (
            self.create_publisher(Clock, "/clock", 1) if self._with_clock else None
        )
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._play, name="player", daemon=True)
        self.finished = False
        self.exit_code = 0

    def start(self) -> None:
        """Begin to play."""
        for topic, kind in self._recording.skipped.items():
            self.get_logger().warning(f"{topic} is not played: {kind} is not installed here")
        self._thread.start()

    def destroy_node(self) -> None:
        """Stop playing, then remove the publishers."""
        if hasattr(self, "_thread"):
            self._stopping.set()
            if self._thread.is_alive():
                self._thread.join()
        super().destroy_node()

    def _play(self) -> None:
        try:
            self._play_all()
        except Exception as error:  # a damaged part of the file: say which file, and end
            self.get_logger().error(f"{self._recording.path} cannot be played on: {error}")
            self.exit_code = 1
        self.finished = True

    def _play_all(self) -> None:
        self._wait_for_subscriber()
        self._stopping.wait(self._start_delay_s)
        with self._recording as recording:
            self.get_logger().info(
                f"playing {recording.path}: {recording.num_messages} messages,"
                f" {recording.duration_s:.1f} s, rate {self._rate:g}"
            )
            while not self._stopping.is_set():
                self._play_once(recording)
                if not self._loop:
                    break
        if not self._stopping.is_set():
            for publisher in self._publishers_by_topic.values():
                publisher.wait_for_all_acked(Duration(seconds=_FLUSH_S))
            self.get_logger().info("end of the recording")

    def _play_once(self, recording: Recording) -> None:
        begun_s = reported_s = time.monotonic()
        for number, message in enumerate(recording.messages(), start=1):
            offset_s = (message.time_ns - recording.start_ns) / 1e9
            if not self._wait_until(begun_s + offset_s / self._rate, message.time_ns):
                return
            self._publish(message)
            if time.monotonic() - reported_s >= _PROGRESS_PERIOD_S:
                reported_s = time.monotonic()
                self.get_logger().info(
                    f"{offset_s:.1f} of {recording.duration_s:.1f} s,"
                    f" {number} of {recording.num_messages} messages"
                )

    def _wait_until(self, due_s: float, time_ns: int) -> bool:
        """Wait, publishing the recording's time meanwhile; False when stopping."""
        while (remaining_s := due_s - time.monotonic()) > 0:
            if self._clock_publisher:
                self._tick(time_ns - int(remaining_s * self._rate * 1e9))
                remaining_s = min(remaining_s, _CLOCK_PERIOD_S)
            if self._stopping.wait(remaining_s):
                return False
        if self._clock_publisher:
            self._tick(time_ns)
        return not self._stopping.is_set()

    def _tick(self, time_ns: int) -> None:
        assert self._clock_publisher is not None  # the callers have looked
        self._clock_publisher.publish(Clock(clock=to_stamp(time_ns)))

    def _publish(self, message: RecordedMessage) -> None:
        serialized = message.serialized
        if self._restamp and self._recording.topics[message.topic].stamped:
            serialized = restamp(serialized, self.get_clock().now().nanoseconds)
        self._publishers_by_topic[message.topic].publish(serialized)

    def _wait_for_subscriber(self) -> None:
        until_s = time.monotonic() + self._wait_s
        publishers = self._publishers_by_topic.values()
        while time.monotonic() < until_s:
            if any(publisher.get_subscription_count() for publisher in publishers):
                return
            if self._stopping.wait(0.05):
                return
        if self._wait_s:
            self.get_logger().warning(f"no subscriber after {self._wait_s:g} s; playing anyway")

    def _create(self, topic: str, message_type: type, latched: bool) -> Publisher:
        durability = DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
        qos = QoSProfile(depth=_PUBLISHER_DEPTH, durability=durability)
        # Relative, so that the node's namespace applies to the recorded cameras as well.
        return self.create_publisher(message_type, topic.lstrip("/"), qos)
