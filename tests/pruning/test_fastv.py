"""FastV: one cut by the last prompt token's attention."""

from __future__ import annotations

import numpy as np
import pytest

from edge_atp.errors import ConfigError
from edge_atp.pruning import load
from edge_atp.pruning.fastv import keep_count, rank


def test_by_hand() -> None:
    selection = rank(np.array([[0.1, 0.2, 0.0, 0.3], [0.1, 0.0, 0.2, 0.1]], np.float32), 2)
    np.testing.assert_allclose(selection.scores, [0.1, 0.1, 0.1, 0.2], atol=1e-7)
    assert selection.order.tolist() == [3, 0]
    assert selection.kept_indices.tolist() == [0, 3]


@pytest.mark.parametrize(
    ("num", "ratio", "kept"), [(576, 0.5, 288), (576, 0.75, 144), (5, 0.5, 2), (7, 0.5, 4)]
)
def test_the_count_rounds_as_the_published_code(num: int, ratio: float, kept: int) -> None:
    assert keep_count(num, ratio) == kept


def test_schedule() -> None:
    assert load("fastv").schedule(576).tokens_per_layer(4, 576) == [576, 576, 288, 288]
    assert load("fastv", layer=3).schedule(576, 64).counts == (64,)


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="layer is 0"):
        load("fastv", layer=0)
    with pytest.raises(ConfigError, match=r"drop_ratio is 1"):
        load("fastv", drop_ratio=1.0)
