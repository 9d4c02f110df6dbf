"""What the cameras keep: the newest, those that match, and how many came to nothing."""

from __future__ import annotations

import struct

import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_ros import cameras as cameras_module
from edge_atp_ros.cameras import BOTH, Cameras
from edge_atp_ros.frames import read_stamp
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image

from edge_atp.errors import ImageError

MS = 1_000_000


def image(stamp_ns: int, size: int = 0) -> bytes:
    message = Image(data=bytes(size))
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
    return serialize_message(message)


class Feed:
    """Cameras that are handed messages in place of DDS."""

    def __init__(self, *names: str, history: int = 4, tolerance_ms: float = 10.0) -> None:
        self.cameras = Cameras(
            names, [f"{n}/image" for n in names], BOTH, 10, history, lambda: tolerance_ms / 1e3
        )

    def send(self, name: str, milliseconds: int) -> bool:
        return self.cameras._store(name, image(10**9 * 100 + milliseconds * MS), Image)

    def newest(self, *names: str) -> list[int] | None:
        frames = self.cameras.newest(names)
        return frames and [(f.stamp_ns - 10**9 * 100) // MS for f in frames]


@pytest.mark.parametrize("kind", [Image, CompressedImage])
@pytest.mark.parametrize("nanoseconds", [0, 1, 1_500_000_007, -3 * 10**9])
def test_the_stamp_is_read_without_decoding_the_message(kind, nanoseconds):
    message = kind()
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(nanoseconds, 10**9)
    assert read_stamp(serialize_message(message)) == nanoseconds


def test_both_byte_orders_are_read_and_too_few_bytes_are_none():
    assert read_stamp(b"\0\0\0\0" + struct.pack(">iI", 5, 7)) == 5 * 10**9 + 7
    assert read_stamp(b"\0\1\0\0" + struct.pack("<iI", 5, 7)) == 5 * 10**9 + 7
    assert read_stamp(b"\0\1\0\0" + bytes(7)) is None


def test_the_newest_arrival_wins_unless_it_came_late():
    feed = Feed("a")
    assert feed.newest("a") is None
    assert feed.send("a", 0)
    assert feed.send("a", 66)
    assert not feed.send("a", 33), "overtaken on the way"
    assert feed.newest("a") == [66]
    assert feed.send("a", 66), "the same stamp again is a new message"
    assert feed.send("a", -5000), "a clock that was set back"
    assert feed.newest("a") == [-5000]
    assert feed.send("a", -4900)
    counts = feed.cameras.counts()["a"]
    assert (counts.received, counts.late) == (6, 1)


def test_frames_nobody_asked_about_count_as_dropped_once_replaced():
    feed = Feed("a")
    for milliseconds in (0, 10, 20):
        feed.send("a", milliseconds)
    assert feed.cameras.dropped() == {"a": 2}
    newest = feed.cameras.newest(["a"])
    feed.cameras.use(newest)
    feed.cameras.use(newest)
    feed.send("a", 30)
    assert feed.cameras.dropped() == {"a": 2}, "the one in use was not dropped"
    feed.send("a", 40)
    assert feed.cameras.dropped() == {"a": 3}
    assert not feed.send("a", 35)
    assert feed.cameras.dropped() == {"a": 4}, "a late one is of no use to anyone"


def test_images_of_two_cameras_are_matched_by_stamp():
    feed = Feed("a", "b")
    feed.send("a", 0)
    assert feed.newest("a", "b") is None
    assert feed.cameras.silent(["a", "b"]) == ("b",)
    feed.send("b", 3)
    feed.send("a", 33)
    assert feed.newest("a", "b") == [0, 3], "the second camera's next one is still on the way"
    feed.send("b", 36)
    assert feed.newest("b", "a") == [36, 33], "in the order asked for"
    assert feed.newest("a") == [33]


def test_cameras_out_of_step_do_not_match_unless_the_tolerance_is_off():
    for tolerance_ms, expected in ((10.0, None), (0.0, [0, 500])):
        feed = Feed("a", "b", tolerance_ms=tolerance_ms)
        feed.send("a", 0)
        feed.send("b", 500)
        assert feed.newest("a", "b") == expected


def test_a_camera_that_falls_behind_is_not_matched_with_the_past():
    feed = Feed("a", "b", history=100)
    for name in ("a", "b"):
        feed.send(name, 0)
    assert feed.newest("a", "b") == [0, 0]
    feed.send("a", 20_000)
    feed.send("b", 50_000)
    assert feed.newest("a", "b") is None


def test_only_so_many_frames_are_kept(monkeypatch):
    feed = Feed("a", "b", history=3)
    for number in range(6):
        feed.send("a", number * 100)
    feed.send("b", 300)
    assert feed.newest("a", "b") == [300, 300]
    feed.send("a", 600)
    assert feed.newest("a", "b") is None, "300 is the fourth last by now"

    monkeypatch.setattr(cameras_module, "_HISTORY_BYTES", 3000)
    feed = Feed("a", "b", history=100)
    for number in range(9):
        feed.cameras._store("a", image(number * MS, 1000), Image)
    assert len(feed.cameras._slots["a"].recent) == 2


def test_a_single_camera_keeps_one_frame():
    feed = Feed("a", history=100)
    for number in range(5):
        feed.send("a", number)
    assert len(feed.cameras._slots["a"].recent) == 1


def test_without_a_tolerance_nothing_is_kept_to_match_with():
    feed = Feed("a", "b", history=100, tolerance_ms=0.0)
    for number in range(5):
        feed.send("a", number * 100)
    feed.send("b", 0)
    assert len(feed.cameras._slots["a"].recent) == 1
    assert feed.newest("a", "b") == [400, 0]


def test_a_malformed_message_is_the_newest_and_says_so_when_read():
    feed = Feed("a")
    feed.send("a", 0)
    feed.cameras._store("a", b"\0\1\0\0\1", Image)
    (frame,) = feed.cameras.newest(["a"])
    with pytest.raises(ImageError, match=r"'a' sent a malformed Image message \(5 bytes"):
        frame.read()


def test_forgetting_releases_the_frames_and_keeps_the_counts():
    feed = Feed("a")
    feed.send("a", 5000)
    feed.cameras.forget()
    assert feed.newest("a") is None
    assert feed.send("a", 4500), "nothing is late after a jump of the clock"
    assert feed.cameras.counts()["a"].received == 2
