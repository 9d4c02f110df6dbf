"""The recording and the player: real bags, real processes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_ros.convert import to_ns
from edge_atp_ros.images import to_rgb
from edge_atp_ros.recording import Recording, RecordingError, restamp
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage
from std_msgs.msg import Header

BAG = Path(__file__).resolve().parents[2] / "launch" / "bags" / "warehouse_cell"
IMAGE, INFO = "/camera/image_raw/compressed", "/camera/camera_info"
PLAYER = [sys.executable, "-m", "edge_atp_ros.bag_player", "--ros-args"]
AFTER_A_SUBSCRIBER = ["-p", "wait_for_subscriber:=120.0", "-p", "start_delay:=0.5"]
NUM_FRAMES = 121


@pytest.fixture
def client(early_client):
    return early_client


def write_bag(path: Path, times_ns: list[int]) -> Path:
    """A bag of messages without a header, and of a type that no package here has."""
    store = get_typestore(Stores.ROS2_HUMBLE)
    store.register(get_types_from_msg("int32 x", "no_such_msgs/msg/Thing"))
    text = store.types["std_msgs/msg/String"]
    with Writer(path, version=8, storage_plugin=StoragePlugin.SQLITE3) as writer:
        known = writer.add_connection("/text", "std_msgs/msg/String", typestore=store)
        unknown = writer.add_connection("/odd", "no_such_msgs/msg/Thing", typestore=store)
        for time_ns in times_ns:
            data = store.serialize_cdr(text(data=str(time_ns)), "std_msgs/msg/String")
            writer.write(known, time_ns, data)
            writer.write(unknown, time_ns, b"\0\1\0\0\1\0\0\0")
    return path


def test_the_shipped_bag_is_small_and_complete():
    size = sum(path.stat().st_size for path in BAG.iterdir())
    assert size < 5_000_000
    with Recording(BAG) as recording:
        assert set(recording.topics) == {IMAGE, INFO}
        assert not recording.skipped
        assert recording.duration_s == pytest.approx(24.0)
        messages = list(recording.messages())
    assert len(messages) == recording_count(messages, IMAGE) + recording_count(messages, INFO)
    assert recording_count(messages, IMAGE) == NUM_FRAMES
    first = deserialize_message(messages[1].serialized, CompressedImage)
    info = deserialize_message(messages[0].serialized, CameraInfo)
    assert to_rgb(first).shape == (info.height, info.width, 3) == (480, 640, 3)
    assert first.header == info.header
    assert to_ns(first.header.stamp) == messages[0].time_ns


def recording_count(messages, topic: str) -> int:
    return sum(message.topic == topic for message in messages)


def test_restamping_changes_the_stamp_and_nothing_else():
    image = CompressedImage(format="jpeg", data=b"\1\2\3")
    image.header = Header(frame_id="cam")
    image.header.stamp.sec = 5
    changed = deserialize_message(
        restamp(bytes(serialize_message(image)), 1_700_000_000_000_000_123), CompressedImage
    )

    assert to_ns(changed.header.stamp) == 1_700_000_000_000_000_123
    changed.header.stamp = image.header.stamp
    assert changed == image


def test_messages_of_types_that_are_not_installed_are_skipped(tmp_path):
    with Recording(write_bag(tmp_path / "bag", [10, 20])) as recording:
        assert list(recording.topics) == ["/text"]
        assert not recording.topics["/text"].stamped
        assert recording.skipped == {"/odd": "no_such_msgs/msg/Thing"}
        assert [message.time_ns for message in recording.messages()] == [10, 20]


def test_a_bag_that_cannot_be_read_is_named(tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "metadata.yaml").write_text("rosbag2_bagfile_information: {version: 99}")
    for path in (tmp_path / "missing", damaged, tmp_path):
        with pytest.raises(RecordingError, match=str(path)):
            Recording(path)


def test_the_player_keeps_the_timing_and_stamps_with_the_time_of_publishing(client, start_process):
    images = client.listen_later(CompressedImage, IMAGE)
    before_ns = client.node.get_clock().now().nanoseconds
    rate = 8.0
    command = [*PLAYER, "-p", f"bag:={BAG}", "-p", f"rate:={rate}"]
    process = start_process([*command, *AFTER_A_SUBSCRIBER])
    process.wait_for("end of the recording")
    assert process.wait() == 0

    client.wait(lambda: len(images) == NUM_FRAMES, "every frame")
    stamps_ns = np.array([to_ns(image.header.stamp) for image in images])
    assert stamps_ns[0] > before_ns
    assert (np.diff(stamps_ns) > 0).all()
    # Not rushed; how late a loaded machine may be is not this test's business.
    assert (stamps_ns[-1] - stamps_ns[0]) / 1e9 > 0.95 * 24 / rate


def test_with_its_clock_the_recorded_stamps_stay(client, start_process):
    images = client.listen_later(CompressedImage, IMAGE)
    clocks = client.listen_later(Clock, "/clock", 1000)
    # The player holds 50 images for a subscriber that falls behind: 1.2 s at this rate.
    command = [*PLAYER, "-p", f"bag:={BAG}", "-p", "rate:=8.0", "-p", "publish_clock:=true"]
    process = start_process([*command, "-p", "restamp:=false", *AFTER_A_SUBSCRIBER])
    process.wait_for("end of the recording")

    client.wait(lambda: len(images) == NUM_FRAMES, "every frame")
    with Recording(BAG) as recording:
        recorded = [m.time_ns for m in recording.messages() if m.topic == IMAGE]
    assert [to_ns(image.header.stamp) for image in images] == recorded
    # On a topic of its own, which may be later than the images.
    client.wait(lambda: clocks and to_ns(clocks[-1].clock) == recorded[-1], "the last tick")
    ticks = [to_ns(clock.clock) for clock in clocks]
    assert ticks == sorted(ticks)


def test_a_loop_starts_again_and_ends_in_order(client, start_process):
    images = client.listen_later(CompressedImage, IMAGE)
    command = [*PLAYER, "-p", f"bag:={BAG}", "-p", "rate:=100.0", "-p", "loop:=true"]
    process = start_process(command)
    client.wait(lambda: len(images) > NUM_FRAMES, "the second round")

    assert process.stop() == 0
    assert "Traceback" not in process.output()


def test_a_recording_damaged_in_the_middle_is_played_so_far(tmp_path, start_process):
    damaged = tmp_path / "damaged.mcap"
    content = bytearray((BAG / "warehouse_cell.mcap").read_bytes())
    content[len(content) // 2 : -4096] = bytes(len(content) // 2 - 4096 + len(content) % 2)
    damaged.write_bytes(content)
    process = start_process([*PLAYER, "-p", f"bag:={damaged}", "-p", "rate:=100.0"])

    assert process.wait() == 1
    assert f"{damaged} cannot be" in process.output()
    assert "Traceback" not in process.output()


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        (["bag:=/no/such/bag"], "/no/such/bag does not exist"),
        ([f"bag:={BAG}", "rate:=0.0"], "rate"),
        ([f"bag:={BAG}", "publish_clock:=true"], "restamp exclude"),
    ],
)
def test_a_player_that_cannot_play_says_why(start_process, parameters, reason):
    process = start_process([*PLAYER, *(word for p in parameters for word in ("-p", p))])

    assert process.wait() == 1
    assert reason in process.output()
    assert "Traceback" not in process.output()
