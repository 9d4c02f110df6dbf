from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from models.warehouse_tiny import dataset
from models.warehouse_tiny.scenes import SceneStore, scene_order


def test_an_intact_shard_loads(shard_folder: Path) -> None:
    store = SceneStore(shard_folder, "train", 8)
    scene = store[3]
    assert scene.image.shape == (224, 224, 3)
    assert scene.coverage.shape == (28, 256)
    np.testing.assert_allclose(scene.coverage.sum(0), 1.0, atol=0.02)


def test_a_truncated_shard_is_refused(shard_folder: Path) -> None:
    path = shard_folder / "train_000000.images.npy"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(dataset.ShardError, match=r"train_000000\.images\.npy: SHA-256 differs"):
        SceneStore(shard_folder, "train", 8)


def test_a_missing_file_is_named(shard_folder: Path) -> None:
    (shard_folder / "train_000000.coverage.npy").unlink()
    with pytest.raises(dataset.ShardError, match=r"coverage\.npy: missing"):
        SceneStore(shard_folder, "train", 8)


def test_another_generator_version_is_refused(shard_folder: Path) -> None:
    index = shard_folder / "train_000000.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"generator_version": 0}))
    with pytest.raises(dataset.ShardError, match="generator_version is 0"):
        SceneStore(shard_folder, "train", 8)


def test_too_few_scenes_name_the_command(shard_folder: Path) -> None:
    with pytest.raises(dataset.ShardError, match=r"--split train --scenes 9"):
        SceneStore(shard_folder, "train", 9)


def test_every_epoch_visits_every_scene_once() -> None:
    epochs = [scene_order(0, step, 4, 12) for step in range(6)]
    assert sorted(itertools.chain(*epochs[:3])) == list(range(12))
    assert sorted(itertools.chain(*epochs[3:])) == list(range(12))
    assert epochs[:3] != epochs[3:]
