"""MMTok: greedy coverage of text and image."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from pruning_cases import make_signals

from edge_atp.errors import ConfigError, ShapeError
from edge_atp.pruning import load
from edge_atp.pruning.mmtok import coverage_order
from edge_atp.types import VisualSignals


def reference_coverage(signals: VisualSignals) -> np.ndarray:
    def unit(rows: np.ndarray) -> np.ndarray:
        rows = rows.astype(np.float64)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def softmax(rows: np.ndarray) -> np.ndarray:
        powers = np.exp(rows - rows.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    text, visual = unit(signals.text_tokens), unit(signals.image_embeds)
    features = unit(signals.patch_features)
    text_rows = softmax(text @ visual.T / 0.02) / len(text)
    visual_rows = 0.5 * softmax(features @ features.T / 0.2) / len(visual)
    return np.concatenate([text_rows, visual_rows])


def reference(coverage: np.ndarray, num_kept: int) -> list[int]:
    """Every step evaluates the whole objective for every token."""
    order: list[int] = []
    for _ in range(num_kept):
        gains = [
            -np.inf if c in order else coverage[:, [*order, c]].max(axis=1).sum()
            for c in range(coverage.shape[1])
        ]
        order.append(int(np.argmax(gains)))
    return order


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_kept", [1, 6, 14])
def test_matches_the_objective_written_out(seed: int, num_kept: int) -> None:
    signals = make_signals(seed=seed)
    order = load("mmtok").select(signals, num_kept).order.tolist()
    assert order == reference(reference_coverage(signals), num_kept)


def test_by_hand() -> None:
    # Column sums 1.1, 1.0, 0.9. After column 0 the rows have .6, .5, 0: column 1 adds .2, and
    # column 2 adds .9.
    coverage = np.array([[0.6, 0.6, 0.0], [0.5, 0.2, 0.0], [0.0, 0.2, 0.9]])
    assert coverage_order(coverage, 3) == [0, 2, 1]


def test_a_column_that_adds_nothing_waits_for_its_index() -> None:
    coverage = np.array([[1.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 0.2]])
    assert coverage_order(coverage, 4) == [0, 3, 1, 2]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(3))
def test_gains_of_any_size_are_ranked(dtype: type, seed: int) -> None:
    # Rows 10^-12 to 1: what the first picks leave is far below a unit of the first fixed point.
    rng = np.random.default_rng(seed)
    rows = rng.random((24, 30)) ** 3 * 10.0 ** -np.arange(0, 12, 0.5)[:, None]
    coverage = rows.astype(dtype)
    assert coverage_order(coverage, 30) == reference(coverage.astype(np.float64), 30)


@pytest.mark.parametrize("repeated", [False, True])
def test_many_wide_tokens_are_ranked_as_in_float64(repeated: bool) -> None:
    signals = make_signals(rows=14, cols=20, width=1000, seed=3)
    if repeated:
        source = np.random.default_rng(3).integers(0, 200, 280)
        signals = dataclasses.replace(
            signals,
            patch_features=signals.patch_features[source],
            image_embeds=signals.image_embeds[source],
        )
    double = dataclasses.replace(
        signals,
        patch_features=signals.patch_features.astype(np.float64),
        image_embeds=signals.image_embeds.astype(np.float64),
        text_tokens=signals.text_tokens.astype(np.float64),
    )
    got, expected = (load("mmtok").select(s, 200).order.tolist() for s in (signals, double))
    assert got == expected


def test_rounding_does_not_part_equal_gains() -> None:
    # Both columns cover 0.6 in all; summed from the top, the second is a last bit ahead.
    coverage = np.array([[0.3, 0.1], [0.2, 0.2], [0.1, 0.3]])
    assert (0.3 + 0.2) + 0.1 < (0.1 + 0.2) + 0.3
    assert coverage_order(coverage, 1) == [0]


@pytest.mark.parametrize("temperature", [0.001, 0.2])
def test_any_temperature_gives_a_softmax(temperature: float) -> None:
    tokens = np.vstack([np.eye(4), np.zeros((1, 4))]).astype(np.float32)
    signals = VisualSignals(image_embeds=tokens, patch_features=tokens, text_tokens=tokens[[2]])
    method = load("mmtok", text_temperature=temperature, visual_temperature=temperature)
    assert method.select(signals, 5).order.tolist() == [2, 0, 1, 3, 4]


def test_the_image_is_covered_in_feature_space_where_it_is_exposed() -> None:
    signals = make_signals()
    projected_only = dataclasses.replace(signals, patch_features=None)
    same = dataclasses.replace(signals, patch_features=signals.image_embeds)
    got, expected = (load("mmtok").select(s, 8).order.tolist() for s in (projected_only, same))
    assert got == expected


def test_without_visual_weight_only_the_question_counts() -> None:
    tokens = np.eye(4, dtype=np.float32)
    signals = VisualSignals(image_embeds=tokens, patch_features=tokens, text_tokens=tokens[[2, 1]])
    assert load("mmtok", visual_weight=0.0).select(signals, 2).kept_indices.tolist() == [1, 2]


def test_widths_must_agree() -> None:
    signals = dataclasses.replace(make_signals(), text_tokens=np.ones((3, 5), np.float32))
    with pytest.raises(ShapeError, match="embedding space"):
        load("mmtok").select(signals, 4)


@pytest.mark.parametrize(
    "options", [{"text_temperature": 0.0}, {"visual_temperature": -1.0}, {"visual_weight": -0.1}]
)
def test_bad_options_are_named(options: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        load("mmtok", **options)
