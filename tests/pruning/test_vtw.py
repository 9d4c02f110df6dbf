"""VTW: all visual tokens leave at a calibrated layer."""

from __future__ import annotations

import numpy as np
import pytest

from edge_atp.errors import ConfigError
from edge_atp.pruning import load
from edge_atp.pruning.vtw import choose_layer, kl_divergence


def test_divergence_by_hand() -> None:
    # p = (1/2, 1/2), q = (1/4, 3/4): 1/2 ln 2 + 1/2 ln 2/3.
    dense, other = np.log([0.5, 0.5]), np.log([0.25, 0.75])
    expected = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    assert kl_divergence(dense, other) == pytest.approx(expected, abs=1e-12)
    assert kl_divergence(dense + 7, other - 3) == pytest.approx(expected, abs=1e-12)
    assert kl_divergence(dense, dense) == 0.0


def test_divergence_survives_large_logits() -> None:
    assert np.isfinite(kl_divergence(np.array([1e4, -1e4]), np.array([-1e4, 1e4])))


def test_the_first_layer_below_the_threshold_is_chosen() -> None:
    divergences = {20: 0.001, 5: 0.9, 10: 0.2, 15: 0.004}
    assert choose_layer(divergences, 0.01) == 15
    assert choose_layer(divergences, 0.5) == 10
    with pytest.raises(ConfigError, match=r"smallest of 4 layers is 0\.001"):
        choose_layer(divergences, 0.0001)


def test_schedule_keeps_nothing() -> None:
    assert load("vtw", layer=2).schedule(10, 5).tokens_per_layer(4, 10) == [10, 10, 0, 0]


def test_the_layer_is_checked() -> None:
    with pytest.raises(ConfigError, match="layer is 0"):
        load("vtw", layer=0)
