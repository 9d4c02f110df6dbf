"""Average pooling and subsampling of the grid."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning_cases import make_signals

from edge_atp.errors import ConfigError
from edge_atp.pruning import load
from edge_atp.pruning.spatial import cells
from edge_atp.types import PatchGrid, VisualSignals

FOUR_BY_FOUR = VisualSignals(
    patch_features=np.arange(16, dtype=np.float32)[:, None], patch_grid=PatchGrid(4, 4)
)


def test_pools_blocks_by_hand() -> None:
    selection = load("spatial").select(FOUR_BY_FOUR, 4)
    # Block {0, 1, 4, 5} has mean 2.5, and so on.
    np.testing.assert_array_equal(selection.merged[:, 0], [2.5, 4.5, 10.5, 12.5])
    assert selection.kept_indices.tolist() == [0, 2, 8, 10]


def test_stride_keeps_every_second_patch() -> None:
    selection = load("spatial", mode="stride").select(FOUR_BY_FOUR, 4)
    assert selection.kept_indices.tolist() == [0, 2, 8, 10]
    assert selection.merged is None


def test_one_token_is_the_mean_of_all() -> None:
    selection = load("spatial").select(FOUR_BY_FOUR, 1)
    np.testing.assert_array_equal(selection.merged, [[7.5]])


@pytest.mark.parametrize(
    ("rows", "cols", "out"), [(24, 24, (8, 8)), (24, 24, (12, 12)), (7, 5, (3, 2)), (6, 9, (4, 6))]
)
def test_is_torchs_adaptive_pooling_where_the_budget_is_a_grid(
    rows: int, cols: int, out: tuple[int, int]
) -> None:
    torch = pytest.importorskip("torch")
    features = np.random.default_rng(0).standard_normal((rows * cols, 3)).astype(np.float32)
    signals = VisualSignals(patch_features=features, patch_grid=PatchGrid(rows, cols))
    merged = load("spatial").select(signals, out[0] * out[1]).merged
    image = torch.from_numpy(features).reshape(rows, cols, 3).permute(2, 0, 1)
    expected = torch.nn.functional.adaptive_avg_pool2d(image, out).permute(1, 2, 0).reshape(-1, 3)
    np.testing.assert_allclose(merged, expected.numpy(), atol=1e-6)


@settings(deadline=None)
@given(rows=st.integers(1, 9), cols=st.integers(1, 9), share=st.floats(0, 1))
def test_any_budget_gives_exactly_that_many_cells_that_cover_the_grid(
    rows: int, cols: int, share: float
) -> None:
    num_kept = max(1, round(share * rows * cols))
    split = cells(PatchGrid(rows, cols), num_kept)
    covered = np.zeros((rows, cols), bool)
    for (top, bottom), (left, right) in split:
        assert top < bottom
        assert left < right
        covered[top:bottom, left:right] = True
    assert len(split) == num_kept
    assert covered.all()


def test_projected_tokens_are_pooled_where_there_are_no_features() -> None:
    signals = make_signals()
    projected = dataclasses.replace(signals, patch_features=None)
    assert load("spatial").select(projected, 4).merged.shape == (4, signals.image_embeds.shape[1])


def test_an_unknown_mode_names_the_choices() -> None:
    with pytest.raises(ConfigError, match="pool, stride"):
        load("spatial", mode="max")
