"""DivPrune: greedy max-min diversity, alg. 1."""

from __future__ import annotations

import numpy as np
import pytest
from pruning_cases import make_signals

from edge_atp.pruning import load
from edge_atp.types import VisualSignals


def reference(vectors: np.ndarray, num_kept: int) -> list[int]:
    """The published rule, one token at a time in float64."""
    unit = vectors.astype(np.float64)
    lengths = np.linalg.norm(unit, axis=1, keepdims=True)
    unit = np.divide(unit, lengths, out=np.zeros_like(unit), where=lengths > 0)
    distance = 1 - unit @ unit.T
    order = [int(np.argmax(np.sort(distance, axis=0)[1]))]
    while len(order) < num_kept:
        nearest = distance[order].min(axis=0)
        nearest[order] = -np.inf
        order.append(int(np.argmax(nearest)))
    return order


def test_by_hand() -> None:
    # Directions 0, 10, 90, 180 and 200 degrees. Nearest other token: 10, 10, 80, 20, 20 degrees
    # away, so 90 goes first; then the farthest from it, 200 (110 away); then 0 (90 from 90)
    # against 10 (80) and 180 (20).
    degrees = np.deg2rad([0, 10, 90, 180, 200])
    vectors = np.stack([np.cos(degrees), np.sin(degrees)], axis=1).astype(np.float32)
    signals = VisualSignals(image_embeds=vectors)
    assert load("divprune").select(signals, 3).order.tolist() == [2, 4, 0]


def test_length_plays_no_part() -> None:
    signals = make_signals()
    scaled = VisualSignals(
        image_embeds=signals.image_embeds * np.arange(1, 37, dtype=np.float32)[:, None]
    )
    got, expected = (load("divprune").select(s, 12) for s in (scaled, signals))
    assert got.order.tolist() == expected.order.tolist()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_kept", [1, 8, 36])
def test_matches_the_rule_written_out(seed: int, num_kept: int) -> None:
    signals = make_signals(seed=seed)
    selection = load("divprune").select(signals, num_kept)
    assert selection.order.tolist() == reference(signals.image_embeds, num_kept)
    assert selection.scores is None


def test_a_zero_vector_is_at_distance_one_from_everything() -> None:
    vectors = np.eye(4, dtype=np.float32)[:, :3] + 0.5  # all close together
    vectors[3] = 0.0
    assert load("divprune").select(VisualSignals(image_embeds=vectors), 1).order.tolist() == [3]
