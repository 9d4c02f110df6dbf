"""House rules of the scoring functions that hooks call: NaN and a wrong K are errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge_atp.errors import ShapeError
from edge_atp.pruning import atp_progressive, evit, fastv, ivtp, pyramiddrop, sparsevlm, tome

NUM = 5
VISUAL = np.arange(NUM)

# From (1, 5, 5) attention and K to a choice of the five tokens.
RANKS: dict[str, Callable[[Any, int], Any]] = {
    "fastv": lambda a, k: fastv.rank(a[:, 0], k).order,
    "pyramiddrop": lambda a, k: pyramiddrop.rank(a[:, 0], k).order,
    "sparsevlm": lambda a, k: sparsevlm.rank(a[:, :2], k).order,
    "atp_progressive": lambda a, k: atp_progressive.rank(a[:, :2], np.tril(a), k, 0.5).order,
    "ivtp": lambda a, k: ivtp.rank([a, a], a[0], 0, VISUAL, k).order,
    "evit": lambda a, k: evit.split(a[:, 0], k).kept,
}


def attention() -> np.ndarray:
    return np.full((1, NUM, NUM), 1 / NUM, np.float32)


@pytest.mark.parametrize("name", RANKS)
def test_constant_attention_keeps_the_lowest_indices(name: str) -> None:
    for count in (1, 3, NUM):
        assert RANKS[name](attention(), count).tolist() == list(range(count))


@pytest.mark.parametrize("name", RANKS)
@pytest.mark.parametrize("count", [0, NUM + 1])
def test_a_wrong_count_is_an_error(name: str, count: int) -> None:
    with pytest.raises(ShapeError, match=rf"num_kept is {count}; it must be in \[1, 5\]"):
        RANKS[name](attention(), count)


@pytest.mark.parametrize("name", RANKS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_attention_that_is_not_finite_is_an_error(name: str, value: float) -> None:
    wrong = attention()
    wrong[0, 0, 2] = value
    with pytest.raises(ShapeError, match="NaN or infinity"):
        RANKS[name](wrong, 2)


def test_keys_that_are_not_finite_are_an_error() -> None:
    keys = np.ones((6, 3), np.float32)
    keys[4, 1] = np.nan
    with pytest.raises(ShapeError, match="keys contains NaN or infinity"):
        tome.match(keys, 2)
