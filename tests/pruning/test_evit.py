"""EViT: keep by CLS attention, fuse the rest."""

from __future__ import annotations

import numpy as np
import pytest

from edge_atp.errors import ConfigError
from edge_atp.pruning import load
from edge_atp.pruning.evit import fuse, keep_count, split

ATTENTION = np.array([[0.1, 0.3, 0.2, 0.2], [0.1, 0.1, 0.2, 0.4]], np.float32)


def test_by_hand() -> None:
    parts = split(ATTENTION, 2)  # means .1, .2, .2, .3
    assert parts.kept.tolist() == [1, 3]
    assert parts.dropped.tolist() == [0, 2]
    np.testing.assert_allclose(parts.scores, [0.1, 0.2, 0.2, 0.3], atol=1e-7)
    tokens = np.array([[10, 0], [0, 0], [5, 1], [0, 0]], np.float32)
    np.testing.assert_allclose(fuse(tokens, parts.scores, parts.dropped), [2, 0.2], atol=1e-6)


def test_torch_agrees() -> None:
    torch = pytest.importorskip("torch")
    parts = split(torch.from_numpy(ATTENTION).bfloat16(), 2)
    assert parts.kept.tolist() == [1, 3]
    tokens = torch.ones(4, 3, dtype=torch.bfloat16)
    fused = fuse(tokens, parts.scores, parts.dropped)
    assert fused.dtype == torch.bfloat16
    np.testing.assert_allclose(fused.float().numpy(), 0.3, atol=1e-2)


@pytest.mark.parametrize(
    ("num", "rate", "kept"), [(196, 0.7, 138), (10, 0.7, 7), (576, 0.5, 288), (3, 0.01, 1)]
)
def test_the_count_is_rounded_up(num: int, rate: float, kept: int) -> None:
    assert keep_count(num, rate) == kept


def test_keeping_all_fuses_nothing() -> None:
    parts = split(ATTENTION, 4)
    assert parts.dropped.shape == (0,)
    fused = fuse(np.ones((4, 2), np.float32), parts.scores, parts.dropped)
    np.testing.assert_array_equal(fused, [0, 0])


def test_the_fused_token_counts_at_the_next_cut() -> None:
    # 196 -> 138 + 1 -> ceil(.7 * 139) = 98 + 1 -> ceil(.7 * 99) = 70, as published for rate .7.
    assert load("evit", layers=(3, 6, 9)).schedule(196).counts == (138, 98, 70)
    assert load("evit").schedule(576, 64).counts[-1] == 64


def test_the_rate_is_checked() -> None:
    with pytest.raises(ConfigError, match="rate is 0"):
        load("evit", rate=0.0)
