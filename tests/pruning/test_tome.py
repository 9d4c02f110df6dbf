"""ToMe: bipartite matching and size-weighted merging."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_atp.errors import ConfigError
from edge_atp.pruning import load
from edge_atp.pruning.tome import assign, log_sizes, match, merge, merge_count

# CLS, then 1..4; token 2 is like 1 (cos .98), token 4 like 3 (cos 1).
KEYS = np.array([[1, 1], [1, 0], [1, 0.2], [0, 1], [0, 2]], np.float32)


def test_matching_by_hand() -> None:
    matching = match(KEYS, 1)
    assert matching.merged.tolist() == [4]
    assert matching.targets.tolist() == [3]
    assert matching.kept.tolist() == [0, 1, 2, 3]

    matching = match(KEYS, 5)  # at most half of the four patches
    assert matching.merged.tolist() == [4, 2]
    assert matching.targets.tolist() == [3, 1]
    assert matching.kept.tolist() == [0, 1, 3]


def test_cls_never_merges_and_without_cls_token_zero_may() -> None:
    keys = np.ones((5, 2), np.float32)
    assert 0 in match(keys, 2).kept.tolist()
    assert match(keys, 1, has_cls=False).merged.tolist() == [0]


def test_ties_go_to_the_lowest_index() -> None:
    matching = match(np.ones((9, 3), np.float32), 2)
    assert matching.merged.tolist() == [2, 4]
    assert matching.targets.tolist() == [1, 1]


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_pairs_of_equal_keys_tie_at_any_size(backend: str) -> None:
    # Tokens 2i and 2i + 1 are equal: the lowest eight even ones merge, each with its twin.
    keys = np.repeat(np.random.default_rng(0).standard_normal((300, 64)), 2, axis=0)
    keys = keys.astype(np.float32)
    if backend == "torch":
        keys = pytest.importorskip("torch").from_numpy(keys)
    matching = match(keys, 8, has_cls=False)
    assert matching.merged.tolist() == list(range(0, 16, 2))
    assert matching.targets.tolist() == list(range(1, 17, 2))


def test_merging_weighs_by_size() -> None:
    tokens = np.array([[0], [1], [2], [6], [12]], np.float32)
    sizes = np.array([1, 1, 1, 3, 1], np.float32)
    merged, new_sizes = merge(tokens, sizes, match(KEYS, 2))
    np.testing.assert_allclose(merged[:, 0], [0, 1.5, (3 * 6 + 12) / 4])
    np.testing.assert_allclose(new_sizes, [1, 2, 4])


def test_two_tokens_may_join_one_target() -> None:
    keys = np.ones((6, 2), np.float32)
    tokens = np.arange(6, dtype=np.float32)[:, None]
    merged, sizes = merge(tokens, np.ones(6, np.float32), match(keys, 2))
    np.testing.assert_allclose(merged[:, 0], [0, (1 + 2 + 4) / 3, 3, 5])
    np.testing.assert_allclose(sizes, [1, 3, 1, 1])


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("num", [2, 17, 50])
def test_mass_and_ownership_survive_repeated_merging(backend: str, num: int) -> None:
    rng = np.random.default_rng(num)
    start = rng.standard_normal((num, 6)).astype(np.float32)
    tokens, sizes, owner = start, np.ones(num, np.float32), np.arange(num)
    if backend == "torch":
        torch = pytest.importorskip("torch")
        tokens, sizes, owner = map(torch.from_numpy, (tokens, sizes, owner))
    for _ in range(4):
        matching = match(tokens, 5)
        tokens, sizes = merge(tokens, sizes, matching)
        owner = assign(owner, matching)
    tokens, sizes, owner = (np.asarray(a) for a in (tokens, sizes, owner))
    for index in range(len(tokens)):
        members = np.flatnonzero(owner == index)
        assert len(members) == sizes[index]
        np.testing.assert_allclose(tokens[index], start[members].mean(axis=0), atol=1e-5)
    assert owner[0] == 0


def test_the_hidden_states_keep_their_dtype() -> None:
    merged, sizes = merge(np.ones((5, 3), np.float16), np.ones(5), match(KEYS, 1))
    assert merged.dtype == np.float16
    assert sizes.dtype == np.float32


def test_proportional_attention_is_the_log_of_the_size() -> None:
    np.testing.assert_allclose(log_sizes(np.array([1.0, np.e])), [0, 1], atol=1e-6)


def test_nothing_to_merge() -> None:
    matching = match(KEYS, 0)
    assert matching.merged.shape == (0,)
    assert matching.kept.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(merge(KEYS, np.ones(5), matching)[0], KEYS)
    assert assign(np.arange(5), matching).tolist() == [0, 1, 2, 3, 4]


@settings(deadline=None)
@given(num=st.integers(1, 600), requested=st.integers(0, 600))
def test_at_most_half_merge(num: int, requested: int) -> None:
    count = merge_count(num, requested)
    assert 0 <= count <= requested
    assert 2 * count <= num - 1


def test_the_schedule_meets_the_budget() -> None:
    schedule = load("tome").schedule(576, 64)
    assert len(schedule.stages) == 23
    assert schedule.counts[-1] == 64
    steps = np.diff([576, *schedule.counts])
    assert set(steps.tolist()) == {-22, -23}
    assert load("tome", num_merged=8).schedule(576).counts == tuple(range(568, 391, -8))


def test_impossible_budgets_are_refused() -> None:
    with pytest.raises(ConfigError, match="merge at most half"):
        load("tome", num_layers=2).schedule(576, 64)
    with pytest.raises(ConfigError, match="num_merged above 0"):
        load("tome").schedule(576)
    with pytest.raises(ConfigError, match="num_layers 0"):
        load("tome", num_layers=0)
