"""PyramidDrop: staged dropping."""

from __future__ import annotations

import numpy as np
import pytest

from edge_atp.errors import ConfigError
from edge_atp.pruning import load
from edge_atp.pruning.pyramiddrop import keep_counts, rank


def test_by_hand() -> None:
    selection = rank(np.array([[0.0, 0.4, 0.1], [0.2, 0.0, 0.1]], np.float32), 2)
    assert selection.order.tolist() == [1, 0]


def test_the_published_counts() -> None:
    assert keep_counts(576, (0.5, 0.25, 0.125)) == (288, 144, 72)
    tokens = load("pyramiddrop").schedule(576).tokens_per_layer(32, 576)
    assert [tokens[layer] for layer in (7, 8, 15, 16, 23, 24, 31)] == [
        576, 288, 288, 144, 144, 72, 72,
    ]  # fmt: skip


def test_a_budget_scales_the_counts() -> None:
    assert load("pyramiddrop").schedule(576, 36).counts == (144, 72, 36)
    assert load("pyramiddrop").schedule(576, 300).counts == (576, 576, 300)
    assert load("pyramiddrop").schedule(576, 1).counts[-1] == 1


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="differ in length"):
        load("pyramiddrop", layers=(8,))
