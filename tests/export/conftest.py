"""Fixtures: random checkpoints. The whole folder needs the `export` extra."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the exporter needs the `export` extra (torch)")
pytest.importorskip("transformers", reason="the exporter needs the `export` extra")

import torch
from tiny_checkpoints import llm_config, save_llava, save_text_tower

# Several threads on matrices this small only wait for each other.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/export" in str(item.path).replace("\\", "/"):
            item.add_marker(pytest.mark.export)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random fp16 LLaVA with a Llama decoder; treat as read-only."""
    return save_llava(tmp_path_factory.mktemp("llava"), llm_config("llama"))


@pytest.fixture(scope="session")
def text_tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random fp16 CLIP text tower; treat as read-only."""
    return save_text_tower(tmp_path_factory.mktemp("text_tower"))


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(1, 3, 28, 28)).astype(np.float32)
