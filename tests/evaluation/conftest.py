"""Small data sets and raw answers whose scores are known beforehand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_atp.evaluation.dataset import LabelledDataset
from edge_atp.evaluation.dataset_writer import DatasetWriter
from edge_atp.evaluation.labels import Example
from edge_atp.types import PatchGrid

GRID = PatchGrid(4, 4)
FAMILIES = {"colour": "exact", "where": "exact", "caption": "token_f1"}
COLOURS = ("red", "green", "blue")


def write_coloured_squares(path: Path, num_images: int = 6, side: int = 32) -> Path:
    """Images of one coloured square on black; its patch is the target of "what colour?"."""
    writer = DatasetWriter(path, "test", 7, GRID, FAMILIES)
    for number in range(num_images):
        patch = number % GRID.num_patches
        row, col = divmod(patch, GRID.cols)
        cell = side // GRID.rows
        image = np.zeros((side, side, 3), np.uint8)
        image[row * cell : (row + 1) * cell, col * cell : (col + 1) * cell, number % 3] = 200
        target = np.zeros(GRID.num_patches, bool)
        target[patch] = True
        colour = COLOURS[number % 3]
        writer.add(
            f"square_{number:03d}",
            image,
            [
                Example(
                    0,
                    "",
                    "what colour is the square?",
                    colour,
                    "colour",
                    target,
                    choices=COLOURS,
                    variants={"paraphrase": ("which colour does the square have?",)},
                ),
                Example(0, "", "where is it?", f"row {row}, column {col}", "where", target),
                Example(0, "", "describe it.", f"a {colour} square on black", "caption"),
            ],
        )
    return writer.finish()


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    return write_coloured_squares(tmp_path / "squares")


@pytest.fixture
def squares_dataset(squares: Path) -> LabelledDataset:
    return LabelledDataset.open(squares)
