"""VisPruner: important tokens, then rounds of matching."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from pruning_cases import make_signals

from edge_atp.errors import ConfigError
from edge_atp.pruning import load
from edge_atp.pruning.vispruner import drop_redundant
from edge_atp.types import VisualSignals


def reference(signals: VisualSignals, num_kept: int) -> list[int]:
    """The published loop over lists."""
    attention = signals.cls_attention.mean(axis=0)
    ranking = sorted(range(len(attention)), key=lambda i: (-attention[i], i))
    important, residual = ranking[: num_kept // 2], ranking[num_kept // 2 :]
    wanted = num_kept - num_kept // 2
    unit = signals.patch_features.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    while len(residual) > wanted:
        drop = min(8, len(residual) - wanted)
        even, odd = residual[::2], residual[1::2]
        best = {a: max(unit[a] @ unit[b] for b in odd) for a in even}
        distinct = sorted(even, key=lambda a: -best[a])[drop:]
        residual = distinct + odd
    return sorted(important + residual)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_kept", [10, 33, 80])
def test_matches_the_procedure_written_out(seed: int, num_kept: int) -> None:
    signals = make_signals(rows=10, cols=10, seed=seed)
    kept = load("vispruner").select(signals, num_kept).kept_indices.tolist()
    assert kept == reference(signals, num_kept)


def test_one_round_by_hand() -> None:
    # Evens 0 and 2 against odds 1 and 3: best .9 and .5, so 0 goes.
    similarity = np.array(
        [
            [1.0, 0.9, 0.0, 0.1],
            [0.9, 1.0, 0.2, 0.0],
            [0.0, 0.2, 1.0, 0.5],
            [0.1, 0.0, 0.5, 1.0],
        ]
    )
    assert drop_redundant(similarity, 3).tolist() == [2, 1, 3]


def test_a_round_drops_eight_at_most_and_no_more_than_it_must() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((40, 8))
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    one_round = set(drop_redundant(tokens @ tokens.T, 32).tolist())
    assert set(range(1, 40, 2)) <= one_round  # odds survive the first round
    assert len(one_round) == 32
    assert drop_redundant(tokens @ tokens.T, 0).shape == (0,)


@pytest.mark.parametrize("seed", [2, 14])
def test_wide_features_are_ranked_as_in_float64(seed: int) -> None:
    # Cases in which float32 alone ranks two neighbours the wrong way round.
    signals = make_signals(rows=24, cols=24, width=1024, seed=seed)
    double = dataclasses.replace(signals, patch_features=signals.patch_features.astype(np.float64))
    got, expected = (load("vispruner").select(s, 64).order.tolist() for s in (signals, double))
    assert got == expected


def test_cosines_that_float32_cannot_tell_apart_are_ranked_exactly() -> None:
    # Every even token has two nearest odd ones, and its cosine with the better of them differs from
    # its neighbours' by 1e-8 to 1e-7; tokens equal but for their length tie and keep their order.
    rng = np.random.default_rng(5)
    base = rng.standard_normal((60, 1400)).astype(np.float32)
    near = base + 1e-4 * rng.standard_normal((3, 60, 1400)).astype(np.float32)
    features = np.concatenate([base, *near, 2.0 * base[:20]]).astype(np.float32)
    features = features[rng.permutation(len(features))]
    signals = VisualSignals(patch_features=features, cls_attention=np.linspace(1, 0, len(features)))
    double = dataclasses.replace(signals, patch_features=features.astype(np.float64))
    for num_kept in (40, 150):
        got, expected = (load("vispruner").select(s, num_kept) for s in (signals, double))
        assert got.order.tolist() == expected.order.tolist()


def test_important_tokens_are_always_kept() -> None:
    signals = make_signals()
    kept = set(load("vispruner").select(signals, 9).kept_indices.tolist())
    top = load("cls_topk").select(signals, 4).kept_indices.tolist()
    assert set(top) <= kept


def test_all_important_is_cls_topk() -> None:
    signals = make_signals()
    got = load("vispruner", important_ratio=1.0).select(signals, 9).kept_indices.tolist()
    assert got == load("cls_topk").select(signals, 9).kept_indices.tolist()


def test_the_ratio_is_checked() -> None:
    with pytest.raises(ConfigError, match="important_ratio is -0"):
        load("vispruner", important_ratio=-0.1)
