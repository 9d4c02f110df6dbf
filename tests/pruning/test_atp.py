"""ATP: fusion of relevance and saliency, sec. 4 of the paper."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning_cases import make_signals

from edge_atp.errors import ConfigError, MissingSignalError, ShapeError
from edge_atp.pruning import load
from edge_atp.pruning.atp import fuse
from edge_atp.types import VisualSignals

# Cosines with (1, 0): 1, 0.6, 0, -0.8, 0.
PATCHES = np.array([[3, 0], [3, 4], [0, 2], [-4, 3], [0, 0]], np.float32)
TEXT = np.array([2, 0], np.float32)
# Head means 0.1, 0.3, 0.2, 0.2, 0.2.
ATTENTION = np.array([[0.2, 0.2, 0.1, 0.3, 0.2], [0.0, 0.4, 0.3, 0.1, 0.2]], np.float32)
SIGNALS = VisualSignals(patch_embeds=PATCHES, text_embed=TEXT, cls_attention=ATTENTION)

# min-max over the patches, by hand.
RELEVANCE = np.array([1.0, 1.4 / 1.8, 0.8 / 1.8, 0.0, 0.8 / 1.8])
SALIENCY = np.array([0.0, 1.0, 0.5, 0.5, 0.5])


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_scores_are_the_papers_blend(alpha: float) -> None:
    selection = load("atp", alpha=alpha).select(SIGNALS, 2)
    expected = alpha * RELEVANCE + (1 - alpha) * SALIENCY
    np.testing.assert_allclose(selection.scores, expected, atol=1e-6)


def test_keeps_the_best_by_hand() -> None:
    # 0.5 * (1, .78, .44, 0, .44) + 0.5 * (0, 1, .5, .5, .5) = .5, .89, .47, .25, .47
    selection = load("atp").select(SIGNALS, 3)
    assert selection.order.tolist() == [1, 0, 2]  # 2 and 4 tie: the lower index
    assert selection.kept_indices.tolist() == [0, 1, 2]


def test_alpha_one_ignores_saliency_and_alpha_zero_the_question() -> None:
    assert load("atp", alpha=1.0).select(SIGNALS, 2).order.tolist() == [0, 1]
    assert load("atp", alpha=0.0).select(SIGNALS, 2).order.tolist() == [1, 2]


def test_negated_relevance_reverses_the_question() -> None:
    selection = load("atp", alpha=1.0, relevance_source="negated").select(SIGNALS, 5)
    np.testing.assert_allclose(selection.scores, 1 - RELEVANCE, atol=1e-6)
    assert selection.order.tolist() == [3, 2, 4, 1, 0]


def test_value_relevance_reads_the_patches_it_is_given() -> None:
    raw = load("atp").select(SIGNALS, 3)
    value = load("atp", relevance_source="value").select(SIGNALS, 3)
    np.testing.assert_array_equal(raw.scores, value.scores)


def test_saliency_sources() -> None:
    signals = make_signals()
    other = dataclasses.replace(signals, cls_attention=None)
    received = load("atp", saliency_source="received")
    np.testing.assert_array_equal(
        received.select(signals, 4).scores, load("atp").select(other, 4).scores
    )
    with pytest.raises(MissingSignalError, match="cls_attention"):
        load("atp", saliency_source="cls").select(other, 4)
    neither = dataclasses.replace(other, received_attention=None)
    with pytest.raises(MissingSignalError, match="cls_attention or received_attention"):
        load("atp").select(neither, 4)


def test_a_constant_input_contributes_nothing() -> None:
    constant = np.full(4, 0.7, np.float32)
    varied = np.array([0.1, 0.4, 0.2, 0.3], np.float32)
    np.testing.assert_allclose(fuse(constant, varied, 0.5), [0, 0.5, 1 / 6, 1 / 3], atol=1e-6)
    np.testing.assert_array_equal(fuse(constant, constant, 0.5), np.zeros(4))


def test_lengths_must_agree() -> None:
    with pytest.raises(ShapeError, match="one score per patch"):
        fuse(np.ones(3, np.float32), np.ones(4, np.float32), 0.5)
    with pytest.raises(ShapeError, match="same joint space"):
        load("atp").select(dataclasses.replace(SIGNALS, text_embed=np.ones(3, np.float32)), 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"alpha is 1.5.*\[0, 1\]"),
        ({"alpha": float("nan")}, "alpha"),
        ({"relevance_source": "clip"}, "raw, negated, value"),
        ({"saliency_source": "rollout"}, "auto, cls, received"),
    ],
)
def test_bad_options_name_the_choices(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("atp", **options)


@settings(deadline=None)
@given(scale=st.floats(0.01, 100.0), shift=st.floats(-10.0, 10.0), alpha=st.floats(0.0, 1.0))
def test_fusion_ignores_scale_and_offset(scale: float, shift: float, alpha: float) -> None:
    rng = np.random.default_rng(1)
    relevance, saliency = rng.random(20), rng.random(20)
    np.testing.assert_allclose(
        fuse(relevance * scale + shift, saliency, alpha),
        fuse(relevance, saliency, alpha),
        atol=1e-6,
    )


def test_nearly_equal_patches_are_scored_exactly() -> None:
    # Cosines 1e-4 apart: the min-max magnifies float32's 1e-7 a ten thousand times.
    rng = np.random.default_rng(0)
    for num, width in ((20, 16), (300, 400)):
        patches = rng.standard_normal(width) + 1e-4 * rng.standard_normal((num, width))
        patches, text = patches.astype(np.float32), rng.standard_normal(width).astype(np.float32)
        signals = VisualSignals(
            patch_embeds=patches, text_embed=text, cls_attention=np.ones(num, np.float32)
        )
        exact = patches.astype(np.float64) @ text.astype(np.float64)
        exact /= np.linalg.norm(patches.astype(np.float64), axis=1)
        exact = (exact - exact.min()) / (exact.max() - exact.min())
        selection = load("atp", alpha=1.0).select(signals, 5)
        np.testing.assert_allclose(selection.scores, exact, atol=1e-5)
        assert selection.scores.dtype == np.float32


@pytest.mark.parametrize("swapped", [False, True])
def test_blends_that_are_equal_tie(swapped: bool) -> None:
    # Relevance 1 with saliency 1/6, and 1/2 with 4/6: both blends are 7/12, in float32 they differ.
    patches = np.array([[1, 0], [0, 1], [-1, 0], [-1, 0]], np.float32)
    attention = np.array([1, 4, 0, 6], np.float32) / 16
    if swapped:
        patches, attention = patches[[1, 0, 2, 3]], attention[[1, 0, 2, 3]]
    signals = VisualSignals(
        patch_embeds=patches, text_embed=np.array([1, 0], np.float32), cls_attention=attention
    )
    selection = load("atp").select(signals, 4)
    np.testing.assert_allclose(selection.scores, [7 / 12, 7 / 12, 0, 1 / 2], atol=1e-6)
    assert selection.order.tolist() == [0, 1, 3, 2]
