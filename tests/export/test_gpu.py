"""For real, where a GPU is: each device backend answers as the CPU does. Skips with the reason."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import PROMPT

from edge_atp.runtime import sessions
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.model_dir import ModelDirectory
from export import recipe
from export.settings import ExportSettings

pytestmark = pytest.mark.gpu

QUESTION = "where is the red box on the shelf?"


def need(backend: str) -> None:
    candidate = sessions.probe(backend)
    if not candidate.available:
        pytest.skip(f"{backend}: {candidate.reason}")


@pytest.fixture(scope="module")
def exported(
    checkpoint: Path, text_tower: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., ModelDirectory]:
    """The tiny model in a dialect and precision, exported once; read-only."""
    made: dict[tuple[str, str], ModelDirectory] = {}

    def make(dialect: str, precision: str = "fp32") -> ModelDirectory:
        if (dialect, precision) not in made:
            settings = ExportSettings(
                checkpoint,
                text_tower=str(text_tower),
                prompt=PROMPT,
                max_text_tokens=64,
                max_kv=96,
                dialect=dialect,
                precision=precision,
                compare=False,
            )
            out = tmp_path_factory.mktemp(f"{dialect}-{precision}") / "model"
            made[dialect, precision] = recipe.export_model(settings, out, progress=lambda s: None)
        return made[dialect, precision]

    return make


def features_and_tokens(
    directory: ModelDirectory, backend: str, pixels: np.ndarray
) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    engine = Engine.load(directory, backend)
    assert engine.backend == backend
    vision = engine.encode_image(pixels)
    answers = []
    # Twice each: the second run meets warm buffers, captured graphs and a cache to be emptied.
    for kept in 2 * (np.arange(16), np.array([1, 5, 9])):
        prompt = engine.embed_prompt(QUESTION, [engine.project(vision.patch_features, kept)])
        answers.append(engine.generate(prompt, max_new_tokens=12).token_ids)
    engine.close()
    return vision.patch_features, answers


def assert_same(directory: ModelDirectory, backend: str, pixels: np.ndarray, error: float) -> None:
    ours, answers = features_and_tokens(directory, backend, pixels)
    expected, wanted = features_and_tokens(directory, "ort-cpu", pixels)
    assert np.linalg.norm(ours - expected) / np.linalg.norm(expected) < error
    assert answers[:2] == answers[2:]
    assert answers == wanted


@pytest.mark.parametrize("dialect", ["ort-gqa", "prim18"])
def test_cuda_provider(
    exported: Callable[..., ModelDirectory], pixels: np.ndarray, dialect: str
) -> None:
    need("ort-cuda")
    assert_same(exported(dialect), "ort-cuda", pixels, 1e-3)


def test_cuda_graph_of_onnx_runtime(
    exported: Callable[..., ModelDirectory], pixels: np.ndarray
) -> None:
    need("ort-cuda-graph")
    assert_same(exported("std24"), "ort-cuda-graph", pixels, 1e-3)


def test_tensorrt_provider(
    exported: Callable[..., ModelDirectory],
    pixels: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need("ort-trt")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert_same(exported("prim17"), "ort-trt", pixels, 1e-3)
    cached = {path.parent.name for path in tmp_path.rglob("*.engine")}
    assert cached == {"profile_0", "profile_1"}, "the decoder has an engine for each profile"


@pytest.mark.parametrize(
    ("dialect", "precision", "error"),
    [("prim17", "fp32", 1e-3), ("prim18", "fp16", 1e-2), ("std24", "fp32", 1e-3)],
)
def test_native_tensorrt(
    exported: Callable[..., ModelDirectory],
    pixels: np.ndarray,
    tmp_path: Path,
    dialect: str,
    precision: str,
    error: float,
) -> None:
    need("trt")
    import tensorrt

    from export.tensorrt.recipe import build_engines

    version = tuple(int(part) for part in str(tensorrt.__version__).split(".")[:2])
    if dialect == "std24" and version < (10, 15):
        pytest.skip(f"TensorRT {tensorrt.__version__} does not read dialect std24 (10.15 does)")
    folder = shutil.copytree(exported(dialect, precision).path, tmp_path / "model")
    built = build_engines(
        ModelDirectory.open(folder),
        workspace_bytes=256 << 20,
        optimization_level=1,
        log=lambda line: None,
    )
    assert_same(built, "trt", pixels, error)
