"""The dense model."""

from __future__ import annotations

import pytest
from pruning_cases import make_signals

from edge_atp.errors import ConfigError
from edge_atp.pruning import load


@pytest.mark.parametrize("num_kept", [1, 12, 36])
def test_keeps_everything_whatever_the_budget(num_kept: int) -> None:
    selection = load("none").select(make_signals(), num_kept)
    assert selection.kept_indices.tolist() == list(range(36))
    assert selection.scores is None
    assert selection.merged is None


def test_takes_no_options() -> None:
    with pytest.raises(ConfigError, match="none has no option seed; it takes no options"):
        load("none", seed=1)
