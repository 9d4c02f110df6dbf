"""Progressive ATP: relevance and saliency from the LLM's own attention."""

from __future__ import annotations

import numpy as np
import pytest

from edge_atp.errors import ConfigError, ShapeError
from edge_atp.pruning import load
from edge_atp.pruning.atp_progressive import importance, rank

TEXT_ROWS = np.array([[[0.1, 0.3, 0.2]], [[0.1, 0.1, 0.4]]], np.float32)  # means .1, .2, .3
FULL = np.array([[[0.5, 0.2, 0.3], [0.5, 0.4, 0.1], [0.5, 0.3, 0.2]]], np.float32)


def test_by_hand() -> None:
    # Relevance (0, .5, 1); saliency means .5, .3, .2 -> (1, 1/3, 0).
    scores = importance(TEXT_ROWS, FULL, 0.5, causal=False)
    np.testing.assert_allclose(scores, [0.5, (0.5 + 1 / 3) / 2, 0.5], atol=1e-6)
    np.testing.assert_allclose(importance(TEXT_ROWS, FULL, 1.0), [0, 0.5, 1], atol=1e-6)


def test_under_a_causal_mask_position_gives_no_advantage() -> None:
    # Every query spreads its attention evenly over what it sees: no token is salient by choice,
    # yet token 0 receives most in total (1 + 1/2 + 1/3 over three queries).
    rows = np.array([[[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]]], np.float32)
    flat = np.zeros((1, 1, 3), np.float32)
    naive = importance(flat, rows, 0.0, causal=False)
    np.testing.assert_allclose(naive, [1, (5 / 6 - 1 / 3) / (11 / 6 - 1 / 3), 0], atol=1e-6)
    # Means over the queries that see the token: 11/18, 5/12, 1/3.
    fair = importance(flat, rows, 0.0)
    np.testing.assert_allclose(fair, [1, (5 / 12 - 1 / 3) / (11 / 18 - 1 / 3), 0], atol=1e-6)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_constant_attention_scores_zero(backend: str) -> None:
    # Sums over 26, 25, ... 1 queries of the same value; min-max must not stretch their rounding.
    text = np.full((3, 2, 26), 1 / 26, np.float32)
    visual = np.tril(np.full((3, 26, 26), 1 / 26, np.float32))
    if backend == "torch":
        torch = pytest.importorskip("torch")
        text, visual = torch.from_numpy(text), torch.from_numpy(visual)
    assert importance(text, visual, 0.5).tolist() == [0.0] * 26
    assert rank(text, visual, 3, 0.5).order.tolist() == [0, 1, 2]


def test_rank_keeps_the_best() -> None:
    assert rank(TEXT_ROWS, FULL, 2, alpha=1.0).order.tolist() == [2, 1]


def test_torch_agrees() -> None:
    torch = pytest.importorskip("torch")
    theirs = importance(torch.from_numpy(TEXT_ROWS), torch.from_numpy(FULL), 0.3)
    np.testing.assert_allclose(theirs.numpy(), importance(TEXT_ROWS, FULL, 0.3), atol=1e-6)


def test_shapes_must_agree() -> None:
    with pytest.raises(ShapeError, match="same number of visual tokens"):
        importance(TEXT_ROWS[..., :2], FULL, 0.5)


def test_schedule() -> None:
    assert load("atp_progressive").schedule(576).counts == (288, 144, 72)
    assert load("atp_progressive").schedule(576, 72).counts == (288, 144, 72)


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="alpha is 2"):
        load("atp_progressive", alpha=2.0)
    with pytest.raises(ConfigError, match="differ in length"):
        load("atp_progressive", ratios=(0.5,))
