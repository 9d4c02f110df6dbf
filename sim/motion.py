"""Where the tool goes on its way to a goal, and where it is meant to be at a moment. No physics.

The way never crosses the rack sideways: out of the slot to a plane in front of the rack, across,
and into the slot a little above the goal, then down.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sim.frames import RACK_FRONT_Y_M

FRONT_Y_M = -0.95  # a held item is clear of the boards here
LIFT_M = 0.03
SPEED_M_S = 1.6
_SHORTEST_S = 0.15

Vector = NDArray[np.float64]


def waypoints(start_m: Vector, goal_m: Vector) -> list[Vector]:
    """World points from start to goal, the start left out.

    Args:
        start_m: (3,) tool now.
        goal_m: (3,) where it shall be.
    """
    start, goal = np.asarray(start_m, dtype=np.float64), np.asarray(goal_m, dtype=np.float64)
    if np.linalg.norm(goal - start) < 2 * LIFT_M:
        return [goal]
    lift_now = LIFT_M if _in_rack(start) else 0.0
    lift_then = LIFT_M if _in_rack(goal) else 0.0
    points = []
    if lift_now:
        points.append(start + np.array([0.0, 0.0, lift_now]))
    points.append(np.array([start[0], FRONT_Y_M, start[2] + lift_now]))
    points.append(np.array([goal[0], FRONT_Y_M, goal[2] + lift_then]))
    if lift_then:
        points.append(goal + np.array([0.0, 0.0, lift_then]))
    points.append(goal)
    return points


def _in_rack(point_m: Vector) -> bool:
    # Beside the rack (the home position) there is nothing to be lifted over.
    return bool(point_m[1] > RACK_FRONT_Y_M and point_m[0] < 1.7)


class Trajectory:
    """A smooth ride along waypoints; rests at each one.

    Args:
        start_m: (3,) first point.
        points_m: the others.
        begun_s: time at the first point.
    """

    def __init__(self, start_m: Vector, points_m: Sequence[Vector], begun_s: float) -> None:
        self._points = [np.asarray(start_m, dtype=np.float64), *points_m]
        lengths = [
            float(np.linalg.norm(b - a))
            for a, b in zip(self._points, self._points[1:], strict=False)
        ]
        durations = [max(1.5 * length / SPEED_M_S, _SHORTEST_S) for length in lengths]
        self._times = begun_s + np.concatenate([[0.0], np.cumsum(durations)])

    @property
    def end_s(self) -> float:
        """When the last point is reached."""
        return float(self._times[-1])

    @property
    def goal_m(self) -> Vector:
        """(3,) the last point."""
        return self._points[-1]

    def at(self, time_s: float) -> Vector:
        """(3,) the point of a moment."""
        leg = int(np.searchsorted(self._times, time_s, side="right")) - 1
        if leg < 0:
            return self._points[0]
        if leg >= len(self._points) - 1:
            return self._points[-1]
        share = (time_s - self._times[leg]) / (self._times[leg + 1] - self._times[leg])
        share = share * share * (3.0 - 2.0 * share)
        return self._points[leg] + (self._points[leg + 1] - self._points[leg]) * share
