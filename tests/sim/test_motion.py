from __future__ import annotations

import itertools

import numpy as np
import pytest

from sim.cell import HOME_M
from sim.motion import FRONT_Y_M, Trajectory, waypoints

IN_SLOT, IN_OTHER_SLOT = np.array([-1.95, -0.12, 4.0]), np.array([1.05, -0.12, 1.8])


def test_the_way_between_two_slots_leads_around_the_rack():
    points = [IN_SLOT, *waypoints(IN_SLOT, IN_OTHER_SLOT)]
    for a, b in itertools.pairwise(points):
        sideways = np.abs(b - a)[0] > 1e-9
        assert not sideways or (a[1] == b[1] == FRONT_Y_M)
    assert points[1][2] > IN_SLOT[2], "lifted before it is pulled out"
    assert points[-2][2] > IN_OTHER_SLOT[2], "lowered at the end"
    np.testing.assert_array_equal(points[-1], IN_OTHER_SLOT)


def test_beside_the_rack_nothing_is_lifted_over():
    points = waypoints(np.array(HOME_M), np.add(HOME_M, [0.0, 0.0, 0.5]))
    assert [p[2] for p in points] == pytest.approx([2.75, 3.25, 3.25])


def test_a_small_correction_is_a_straight_line():
    assert len(waypoints(IN_SLOT, np.add(IN_SLOT, [0.02, 0.0, 0.0]))) == 1


def test_a_trajectory_starts_and_ends_at_rest_and_never_jumps():
    ride = Trajectory(IN_SLOT, waypoints(IN_SLOT, IN_OTHER_SLOT), begun_s=2.0)
    times = np.arange(1.9, ride.end_s + 0.2, 0.01)
    points = np.array([ride.at(t) for t in times])
    speeds = np.linalg.norm(np.diff(points, axis=0), axis=1) / 0.01

    np.testing.assert_array_equal(points[0], IN_SLOT)
    np.testing.assert_array_equal(points[-1], ride.goal_m)
    assert speeds.max() < 1.7
    assert np.abs(np.diff(speeds)).max() < 0.2
