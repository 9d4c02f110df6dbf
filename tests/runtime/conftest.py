"""Fixtures: the shipped model directory, and an engine on it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_atp.runtime.engine import Engine
from edge_atp.runtime.model_dir import ModelDirectory

SHIPPED = Path(__file__).parents[2] / "models" / "warehouse_tiny" / "onnx"


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The committed model directory; read-only."""
    return SHIPPED


@pytest.fixture
def model_copy(shipped: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(shipped, tmp_path / "model")


@pytest.fixture(scope="session")
def engine(shipped: Path) -> Iterator[Engine]:
    loaded = Engine.load(ModelDirectory.open(shipped), "ort-cpu", num_threads=1)
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def pixels(engine: Engine) -> np.ndarray:
    size = engine.directory.manifest.preprocess.size
    return np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
