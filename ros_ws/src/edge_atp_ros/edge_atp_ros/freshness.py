"""Is a frame young enough to be answered about? By the ROS clock, which may be a simulation's."""

from __future__ import annotations

from collections.abc import Sequence

from edge_atp_ros.frames import CameraImage
from edge_atp_ros.refusals import StaleFrameError


def is_stale(stamps_ns: Sequence[int], now_ns: int, limit_s: float) -> bool:
    """Whether any stamp is further from now than the limit, in either direction; 0: no limit.

    A stamp far ahead of the clock is from before the clock was set back, or from another clock:
    how old its frame is, nobody can say.
    """
    return limit_s > 0 and any(abs(now_ns - stamp) / 1e9 > limit_s for stamp in stamps_ns)


def check_age(images: Sequence[CameraImage], now_ns: int, limit_s: float) -> list[float]:
    """Age of each image in seconds.

    Args:
        limit_s: oldest image that may be answered about; 0: no limit.
    Raises:
        StaleFrameError: names the camera, the age and the limit.
    """
    for image in images:
        if is_stale([image.stamp_ns], now_ns, limit_s):
            age_s = (now_ns - image.stamp_ns) / 1e9
            old = f"is {age_s:.3f} s old"
            ahead = f"is stamped {-age_s:.3f} s ahead of the ROS clock (another clock?)"
            raise StaleFrameError(
                f"the newest image of camera {image.camera} {old if age_s > 0 else ahead}; at most"
                f" {limit_s:g} s (max_frame_age)"
            )
    return [(now_ns - image.stamp_ns) / 1e9 for image in images]
