"""Small data sets and raw answers whose scores are known beforehand."""

from __future__ import annotations

import sys
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


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with random weights and a 4 x 4 patch grid; treat as read-only."""
    torch = pytest.importorskip("torch", reason="the exporter needs the `export` extra (torch)")
    pytest.importorskip("transformers", reason="the exporter needs the `export` extra")
    torch.set_num_threads(1)
    sys.path.append(str(Path(__file__).parents[1] / "export"))
    from tiny_checkpoints import PROMPT, llm_config, save_llava, save_text_tower

    from export.recipe import export_model
    from export.settings import ExportSettings

    folder = tmp_path_factory.mktemp("tiny_model")
    settings = ExportSettings(
        save_llava(folder / "llava", llm_config("llama")),
        text_tower=str(save_text_tower(folder / "text_tower")),
        prompt=PROMPT,
        max_text_tokens=96,
        max_kv=124,
        parity_new_tokens=2,
    )
    return export_model(settings, folder / "model", progress=lambda step: None).path


@pytest.fixture(scope="session")
def three_encoders(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``tiny_model``, with an encoder that leaves 7 of 16 patches and one in pieces besides."""
    from tiny_checkpoints import export_three_encoders

    return export_three_encoders(tmp_path_factory.mktemp("three_encoders"))
