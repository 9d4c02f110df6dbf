"""Spatial baseline: average pooling of the patch grid, or a regular subsample of it.

Looks at neither the image nor the question, and is reported beside every other method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace

from edge_atp.errors import ConfigError
from edge_atp.pruning.base import Pruner, as_indices
from edge_atp.pruning.ops import as_float32
from edge_atp.types import Array, PatchGrid, Selection, VisualSignals

MODES = ("pool", "stride")
FEATURES = ("patch_features", "image_embeds")

# First and one-past-last row or column of a cell.
Span = tuple[int, int]


def bins(length: int, num_bins: int) -> list[Span]:
    """Adaptive-pooling bins: [floor(i L / n), ceil((i + 1) L / n)) for i < n <= L."""
    return [(i * length // num_bins, -(-(i + 1) * length // num_bins)) for i in range(num_bins)]


def cells(grid: PatchGrid, num_kept: int) -> list[tuple[Span, Span]]:
    """Split the grid into exactly ``num_kept`` cells of about its own aspect ratio.

    Args:
        grid: R rows and C columns.
        num_kept: K in [1, R * C].
    Returns:
        K (row span, column span), row-major. r bands of rows, r the rounded square root of
        K R / C, share the K cells as evenly as possible; where r divides K this is adaptive
        pooling to (r, K / r), and K = R C gives every patch a cell of its own.
    """
    rows = round(math.sqrt(num_kept * grid.rows / grid.cols))
    fewest = -(-num_kept // grid.cols)  # a band holds at most C cells
    rows = min(max(rows, fewest, 1), grid.rows, num_kept)
    split: list[tuple[Span, Span]] = []
    for band, row_span in enumerate(bins(grid.rows, rows)):
        count = (band + 1) * num_kept // rows - band * num_kept // rows
        split.extend((row_span, column_span) for column_span in bins(grid.cols, count))
    return split


def pool(features: Array, grid: PatchGrid, num_kept: int) -> Array:
    """Mean of the features in each cell.

    Args:
        features: (N, D) row-major over ``grid``.
        grid: R rows and C columns, N = R * C.
        num_kept: K.
    Returns:
        (K, D) float32.
    """
    xp = array_namespace(features)
    image = xp.reshape(as_float32(features), (grid.rows, grid.cols, features.shape[1]))
    means = [
        xp.mean(image[top:bottom, left:right, :], axis=(0, 1))
        for (top, bottom), (left, right) in cells(grid, num_kept)
    ]
    return xp.stack(means)


@dataclass(frozen=True)
class Method(Pruner):
    """Pooling or subsampling, always exactly K tokens.

    mode: "pool" replaces the tokens by the mean of their cell (``merged``, aligned with
        ``kept_indices``, which names the middle patch of each cell); "stride" keeps the top-left
        patch of each cell as it is.
    """

    needs: ClassVar[tuple[str, ...]] = ("patch_grid",)

    mode: str = "pool"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"mode is {self.mode!r}; choose one of {', '.join(MODES)}")

    @property
    def needs_one_of(self) -> tuple[tuple[str, ...], ...]:
        """What is pooled."""
        return (FEATURES,)

    def _select(self, signals: VisualSignals, num_kept: int, /) -> Selection:
        features = getattr(signals, self._first(signals, FEATURES))
        grid = signals.patch_grid
        assert grid is not None  # in `needs`
        split = cells(grid, num_kept)
        if self.mode == "stride":
            kept = as_indices([r[0] * grid.cols + c[0] for r, c in split], features)
            return Selection(kept_indices=kept, scores=None, order=kept)
        middle = [(sum(r) - 1) // 2 * grid.cols + (sum(c) - 1) // 2 for r, c in split]
        kept = as_indices(middle, features)
        merged = pool(features, grid, num_kept)
        return Selection(kept_indices=kept, scores=None, order=kept, merged=merged)
