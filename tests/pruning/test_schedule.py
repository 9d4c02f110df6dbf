"""Stage schedules."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_atp.errors import ConfigError
from edge_atp.pruning.schedule import Schedule, Stage, constant_ratio, from_ratios


def test_tokens_per_layer_fall_at_each_stage() -> None:
    schedule = Schedule((Stage(2, 6), Stage(4, 3)))
    assert schedule.tokens_per_layer(6, 10) == [10, 10, 6, 6, 3, 3]
    assert schedule.layers == (2, 4)
    assert schedule.counts == (6, 3)
    assert schedule.at(4) == Stage(4, 3)
    assert schedule.at(3) is None


def test_tokens_made_of_dropped_ones_come_on_top_and_are_cut_again() -> None:
    schedule = Schedule((Stage(1, 6), Stage(2, 6), Stage(3, 2)))
    halves = schedule.tokens_per_layer(4, 10, added=lambda dropped: dropped // 2)
    # 10 -> 6 + 4 // 2; 8 -> 6 + 2 // 2; 7 -> 2 + 5 // 2.
    assert halves == [10, 8, 7, 4]
    # Where a stage drops nothing, it makes nothing.
    assert schedule.tokens_per_layer(4, 2, added=lambda dropped: dropped + 1) == [2, 2, 2, 2]


def test_ratios_are_of_the_original_tokens_and_floored() -> None:
    assert from_ratios((8, 16, 24), (0.5, 0.25, 0.125), 577).counts == (288, 144, 72)
    assert from_ratios((0,), (0.3,), 10).counts == (3,)
    assert from_ratios((0,), (0.01,), 10).counts == (1,)


def test_constant_ratio_by_hand() -> None:
    # 120 -> 64 in four cuts: 120 (64/120)^(1/4) = 102.55, 87.64, 74.89, 64.
    assert constant_ratio((3, 6, 9, 12), 120, 64).counts == (103, 88, 75, 64)


@settings(deadline=None)
@given(num=st.integers(1, 3000), share=st.floats(0.0, 1.0), groups=st.integers(1, 12))
def test_constant_ratio_ends_at_the_budget(num: int, share: float, groups: int) -> None:
    kept = max(1, round(share * num))
    counts = constant_ratio(range(groups), num, kept).counts
    assert counts[-1] == kept
    assert all(a >= b for a, b in pairwise(counts))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((Stage(2, 5), Stage(2, 4)), "strictly ascend"),
        ((Stage(3, 5), Stage(2, 4)), "strictly ascend"),
        ((Stage(2, 5), Stage(3, 6)), "more than the one before"),
        ((Stage(-1, 5),), "0 or more"),
        ((Stage(1, -5),), "0 or more"),
    ],
)
def test_impossible_schedules_are_refused(stages: tuple[Stage, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Schedule(stages)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match="differ in length"):
        from_ratios((1, 2), (0.5,), 10)
    with pytest.raises(ConfigError, match=r"ratio is 1.5.*\(0, 1\]"):
        from_ratios((1,), (1.5,), 10)
    with pytest.raises(ConfigError, match=r"num_kept is 11.*\[1, 10\]"):
        constant_ratio((1,), 10, 11)
    with pytest.raises(ConfigError, match="at least one layer"):
        constant_ratio((), 10, 5)
