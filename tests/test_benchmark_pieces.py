"""The pieces of a 7B model: lines through depths, what is projected from them, and the ratios."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="random checkpoints need the `export` extra (torch)")
pytest.importorskip("transformers", reason="random checkpoints need the `export` extra")

from benchmarks.pieces import NEW_TOKENS, PAIRS, fit, full_layers, language_ms, lines, ratios
from benchmarks.shapes import LLAVA_7B


def times(depth: int) -> dict[str, dict[str, float]]:
    """An imaginary device: 10 ms a vision layer, 1 ms a layer and 100 tokens, 5 ms of head."""
    found = {"vision": 10.0 * (depth + 1), "text": 30.0}
    for count in sorted({n for pair in PAIRS for n in pair}):
        found[f"prefill {count}"] = 5.0 + depth * count / 100
        found[f"decode {count}"] = 1.0 + 0.5 * depth
    return {piece: {"cpu": ms, "wall": 9 * ms} for piece, ms in found.items()}


def test_a_line_says_what_a_layer_costs_and_how_well_it_fits() -> None:
    line = fit([1, 2, 3], [12.0, 17.0, 22.0])
    assert (line.per_layer, line.rest) == (pytest.approx(5.0), pytest.approx(7.0))
    assert line.worst_error == pytest.approx(0.0, abs=1e-9)
    assert line.at(32) == pytest.approx(167.0)
    assert fit([1, 2, 3], [12.0, 30.0, 22.0]).worst_error > 0.2


def test_pieces_are_projected_to_their_own_depths() -> None:
    fitted = lines({1: times(1), 2: times(2)}, "cpu")
    assert full_layers("vision") == LLAVA_7B.vision_layers == 24
    assert fitted["vision"].at(24) == pytest.approx(240.0)
    assert fitted["text"].at(full_layers("text")) == pytest.approx(30.0)
    assert fitted["prefill 576"].at(full_layers("prefill 576")) == pytest.approx(5 + 32 * 5.76)


def test_ratios_of_a_layer_of_what_was_measured_and_of_the_projection() -> None:
    found = {1: times(1), 2: times(2)}
    rows = {(row["dense"], row["pruned"]): row for row in ratios(found, lines(found, "cpu"))}
    assert set(rows) == set(PAIRS)
    row = rows[2880, 288]
    assert row["prefill_per_layer"] == pytest.approx(10.0)
    expected = (5 + 28.8 + (NEW_TOKENS - 1) * 1.5) / (5 + 2.88 + (NEW_TOKENS - 1) * 1.5)
    assert row["prefill_and_tokens"][1] == pytest.approx(expected)
    assert row["projected"] > row["prefill_and_tokens"][2] > expected


def test_the_first_token_comes_with_prefill() -> None:
    assert language_ms({"prefill 5": 100.0, "decode 5": 2.0}.__getitem__, 5) == 114.0
