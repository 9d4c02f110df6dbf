"""Which share of each image patch every entity covers: the ground truth of grounding."""

from __future__ import annotations

import numpy as np

from models.warehouse_tiny.vocabulary import GRID, NUM_ENTITIES, NUM_PATCHES


def centre_crop(image: np.ndarray) -> np.ndarray:
    """The central square of an (H, W, ...) array, as the preprocessor takes it."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def patch_coverage(entities: np.ndarray) -> np.ndarray:
    """Share of each patch that every entity covers.

    Args:
        entities: (H, W) integer entity ids; the central square is used, its side is a multiple
            of 16.
    Returns:
        (NUM_ENTITIES, 256) float32 in [0, 1], patches row-major; sums to 1 over entities.
    Raises:
        ValueError: the square does not divide into the patch grid.
    """
    square = centre_crop(entities)
    side = square.shape[0]
    if side % GRID:
        raise ValueError(f"entity map side is {side}; it must be a multiple of {GRID}")
    cell = np.arange(side) // (side // GRID)
    patch = cell[:, None] * GRID + cell[None, :]
    counts = np.bincount(
        (square.astype(np.int64) * NUM_PATCHES + patch).reshape(-1),
        minlength=NUM_ENTITIES * NUM_PATCHES,
    )
    return (counts.reshape(NUM_ENTITIES, NUM_PATCHES) / (side // GRID) ** 2).astype(np.float32)
