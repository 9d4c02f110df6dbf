"""Too old, too far ahead, or young enough; by whatever clock the node follows."""

from __future__ import annotations

import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_ros.frames import CameraImage
from edge_atp_ros.freshness import check_age, is_stale
from edge_atp_ros.refusals import StaleFrameError
from sensor_msgs.msg import Image

S = 10**9


def taken_at(seconds: int, camera: str = "front") -> CameraImage:
    message = Image()
    message.header.stamp.sec = seconds
    return CameraImage(camera, message)


@pytest.mark.parametrize(
    ("stamp_s", "limit_s", "stale"),
    [
        (98, 2.0, False),
        (97, 2.0, True),
        (97, 0.0, False),
        (0, 0.0, False),
        (101, 2.0, False),
        (103, 2.0, True),
    ],
)
def test_a_limit_holds_in_both_directions(stamp_s, limit_s, stale):
    assert is_stale([stamp_s * S], 100 * S, limit_s) is stale


def test_the_oldest_image_decides():
    assert is_stale([100 * S, 90 * S], 100 * S, 5.0)


def test_ages_are_by_the_clock_given():
    assert check_age([taken_at(98), taken_at(99)], 100 * S, 5.0) == [2.0, 1.0]


def test_the_message_names_camera_age_and_limit():
    with pytest.raises(StaleFrameError, match=r"camera left is 7\.000 s old; at most 5 s"):
        check_age([taken_at(99), taken_at(93, "left")], 100 * S, 5.0)
    with pytest.raises(StaleFrameError, match=r"front is stamped 8\.000 s ahead of the ROS clock"):
        check_age([taken_at(108)], 100 * S, 5.0)
    # Simulated time that has not begun: the clock says 0.
    with pytest.raises(StaleFrameError, match="ahead of the ROS clock"):
        check_age([taken_at(108)], 0, 5.0)
