"""Scenes without a renderer: every entity gets patches of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from flat_scenes import flat_coverage

from models.warehouse_tiny import dataset
from models.warehouse_tiny import vocabulary as v
from models.warehouse_tiny.scene import sample_scene
from models.warehouse_tiny.state import Item, SceneState


@pytest.fixture
def hand_made_state() -> SceneState:
    """Top: red box, -, blue drum, -; middle: red tote; bottom: empty; held green drum; a cone."""
    slots: list[Item | None] = [None] * v.NUM_SLOTS
    slots[0], slots[2], slots[4] = Item("box", "red"), Item("drum", "blue"), Item("tote", "red")
    return SceneState(slots=tuple(slots), held=Item("drum", "green"), hazard="cone")


@pytest.fixture
def shard_folder(tmp_path: Path) -> Path:
    """Eight training and four validation scenes with random pictures in the shard format."""
    for split, scenes in (("train", 8), ("val", 4)):
        stem = tmp_path / f"{split}_000000"
        rng = np.random.default_rng(1)
        images = rng.integers(0, 256, (scenes, v.IMAGE_SIZE, v.IMAGE_SIZE, 3), dtype=np.uint8)
        coverage = np.stack([flat_coverage(sample_scene(split, seed)) for seed in range(scenes)])
        arrays = {"images": images, "coverage": (coverage * 255).astype(np.uint8)}
        hashes = {}
        for name, array in arrays.items():
            np.save(f"{stem}.{name}.npy", array)
            hashes[f"{stem.name}.{name}.npy"] = dataset._sha256(Path(f"{stem}.{name}.npy"))
        meta = {
            "generator_version": dataset.GENERATOR_VERSION,
            "split": split,
            "first_seed": 0,
            "scenes": scenes,
            "sha256": hashes,
        }
        stem.with_suffix(".json").write_text(json.dumps(meta))
    return tmp_path
