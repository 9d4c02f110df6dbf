"""Which images of several cameras belong together."""

from __future__ import annotations

import itertools

import pytest

pytest.importorskip("edge_atp_ros", reason="needs the built workspace: scripts/with_ros")

from edge_atp_ros.matching import match
from hypothesis import given
from hypothesis import strategies as st

STAMPS = st.lists(st.integers(0, 60), max_size=6)


def test_the_newest_pair_within_the_tolerance_wins():
    assert match([[10, 20, 30], [11, 21]], 2) == (1, 1), "the second camera's third image is late"
    assert match([[10, 20, 30], [11, 21, 31]], 2) == (2, 2)


def test_a_slow_camera_sets_the_pace():
    fast = [100, 133, 166, 200, 233, 266]
    assert match([fast, [95, 195]], 10) == (3, 1)
    assert match([[95, 195], fast], 10) == (1, 3)


def test_nothing_matches_without_a_common_time():
    assert match([[10], [20]], 9) is None
    assert match([[10], []], 100) is None
    assert match([[10], [20]], 10) == (0, 0)


def test_equal_stamps_match_at_any_tolerance_and_the_later_of_equally_near_ones_is_taken():
    assert match([[5], [5], [5]], 0) == (0, 0, 0)
    assert match([[10], [8, 12]], 4) == (0, 1)


@given(st.lists(STAMPS, min_size=1, max_size=3), st.integers(0, 20))
def test_every_choice_lies_within_the_tolerance(stamps, tolerance):
    choice = match(stamps, tolerance)
    if choice is not None:
        chosen = [camera[i] for camera, i in zip(stamps, choice, strict=True)]
        assert max(chosen) - min(chosen) <= tolerance


@given(STAMPS, STAMPS, st.integers(0, 20))
def test_of_two_cameras_the_newest_pair_there_is_is_found(left, right, tolerance):
    pairs = [pair for pair in itertools.product(left, right) if abs(pair[0] - pair[1]) <= tolerance]
    choice = match([left, right], tolerance)
    assert (choice is not None) == bool(pairs)
    if choice is not None:
        lagging = 0 if max(left) <= max(right) else 1
        chosen = (left[choice[0]], right[choice[1]])
        assert chosen[lagging] == max(pair[lagging] for pair in pairs)
