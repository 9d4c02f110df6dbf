"""Fixtures: random checkpoints. The whole folder needs the `export` extra."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the exporter needs the `export` extra (torch)")
pytest.importorskip("transformers", reason="the exporter needs the `export` extra")

import onnxruntime
import torch
from tiny_checkpoints import llm_config, save_llava, save_text_tower

# Several threads on matrices this small only wait for each other.
torch.set_num_threads(1)


# What ONNX Runtime says of an opset that is newer than itself; 1.23, the last one for Python 3.10,
# says it of dialect std24.
_TOO_NEW = "is under development and support for this is limited"


_IS_OLD = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) < (1, 24)


@contextlib.contextmanager
def _skipping_std24() -> Iterator[None]:
    """Skip the test whose error, or its cause, is an opset that an old ONNX Runtime lacks."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while _IS_OLD and cause is not None:
            if _TOO_NEW in str(cause):
                pytest.skip(f"onnxruntime {onnxruntime.__version__} does not load dialect std24")
            cause = cause.__cause__
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    with _skipping_std24():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with _skipping_std24():
        return (yield)


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
