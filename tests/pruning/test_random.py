"""The random baseline."""

from __future__ import annotations

import numpy as np
import pytest
from pruning_cases import make_signals

from edge_atp.errors import ConfigError
from edge_atp.pruning import load


def test_the_same_seed_gives_the_same_tokens() -> None:
    first, again = (load("random", seed=7).select(make_signals(seed=s), 9) for s in (0, 1))
    assert first.order.tolist() == again.order.tolist()
    other = load("random", seed=8).select(make_signals(), 9)
    assert other.order.tolist() != first.order.tolist()


def test_a_larger_budget_keeps_the_smaller_ones_tokens() -> None:
    order = load("random").select(make_signals(), 20).order.tolist()
    assert load("random").select(make_signals(), 7).order.tolist() == order[:7]


def test_every_patch_is_equally_likely() -> None:
    counts = np.zeros(36)
    for seed in range(600):
        counts[load("random", seed=seed).select(make_signals(), 12).kept_indices] += 1
    # 600 draws of 1/3: mean 200, standard deviation 11.5.
    assert counts.min() > 150
    assert counts.max() < 250


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed is -1"):
        load("random", seed=-1)
