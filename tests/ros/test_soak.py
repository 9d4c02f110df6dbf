"""The benchmarks' soak and lifecycle runs, short: nothing lost, nothing mixed, nothing kept."""

from __future__ import annotations

import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")
pytest.importorskip("psutil", reason="needs the dev extra")

from benchmarks import ros_lifecycle, ros_soak


def test_of_far_too_many_questions_each_gets_one_answer_of_its_own():
    report = ros_soak.run(questions=150, camera_hz=10.0, queue_size=16, most_stops=1)

    assert report.faults == ()
    assert sum(report.outcomes.values()) == 150
    assert report.outcomes["complete"] > 0
    assert report.standing_answers > 0, "standing questions do not starve"


def test_transitions_give_back_what_they_took():
    """A model that stays takes more than its 15 MB a cycle; what glibc keeps levels off at 2."""
    course = ros_lifecycle.run(cycles=6)

    assert course.slope_mb() < 8.0
    threads, files = course.spread()
    assert threads == 0
    assert files <= 1
