"""The TensorRT session on stand-ins that compute: answers as ONNX Runtime gives, or a refusal."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import VERSIONS, FakeCuda, FakeTensorRT
from tiny_checkpoints import PROMPT

from edge_atp.errors import ArtifactError, BackendUnavailableError, InferenceError
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.manifest import read_manifest, write_manifest
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.runtime.sessions import trt as trt_backend
from edge_atp.runtime.sessions.base import Candidate
from export import recipe
from export.settings import ExportSettings
from export.tensorrt.recipe import build_engines

QUESTION = "where is the red box on the shelf?"


@pytest.fixture(params=["10.3.0"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    """A machine with that TensorRT version and a GPU, as the backend sees it."""
    fake = FakeTensorRT(request.param, FakeCuda())
    original = trt_backend.importlib.import_module
    monkeypatch.setattr(
        trt_backend.importlib,
        "import_module",
        lambda name: fake if name == "tensorrt" else original(name),
    )
    monkeypatch.setattr(trt_backend, "Cuda", lambda: fake.cuda)
    monkeypatch.setattr(trt_backend, "probe", lambda name: Candidate(name, True, "stand-in"))
    return fake


@pytest.fixture(scope="module")
def exported(
    checkpoint: Path, text_tower: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The model in a dialect, exported once; read-only."""
    made: dict[str, Path] = {}

    def make(dialect: str) -> Path:
        if dialect not in made:
            settings = ExportSettings(
                checkpoint,
                text_tower=str(text_tower),
                prompt=PROMPT,
                max_text_tokens=64,
                max_kv=96,
                dialect=dialect,
                compare=False,
            )
            out = tmp_path_factory.mktemp(dialect) / "model"
            made[dialect] = recipe.export_model(settings, out, progress=lambda s: None).path
        return made[dialect]

    return make


@pytest.fixture(params=["prim17"])
def built(
    request: pytest.FixtureRequest,
    device: FakeTensorRT,
    exported: Callable[[str], Path],
    tmp_path: Path,
) -> ModelDirectory:
    """A directory of that dialect with its engines."""
    folder = shutil.copytree(exported(request.param), tmp_path / "model")
    return build_engines(
        ModelDirectory.open(folder),
        workspace_bytes=1 << 20,
        optimization_level=3,
        log=lambda line: None,
        trt=device,
        cuda=device.cuda,
    )


def answers(engine: Engine, pixels: np.ndarray) -> list[tuple[int, ...]]:
    vision = engine.encode_image(pixels)
    engine.encode_text(QUESTION)
    result = []
    for kept in (np.arange(16), np.array([1, 5, 9])):
        prompt = engine.embed_prompt(QUESTION, [engine.project(vision.patch_features, kept)])
        result.append(engine.generate(prompt, max_new_tokens=8).token_ids)
    return result


@pytest.mark.parametrize("device", VERSIONS, indirect=True)
def test_same_answers_as_onnx_runtime(
    device: FakeTensorRT, built: ModelDirectory, pixels: np.ndarray
) -> None:
    engine = Engine.load(built, "auto")
    assert engine.backend == "trt"
    ours = answers(engine, pixels)
    assert ours == answers(Engine.load(built, "ort-cpu"), pixels)
    assert ours == answers(engine, pixels)  # buffers of the answer before do not leak into it
    assert ("profile", 0) in device.calls
    assert ("profile", 1) in device.calls
    engine.close()
    assert device.cuda.memory == {}


@pytest.mark.parametrize("device", ["10.16.1", "11.4.0"], indirect=True)
@pytest.mark.parametrize("built", ["std24"], indirect=True)
def test_static_cache_replays_steps_as_one_graph(
    device: FakeTensorRT, built: ModelDirectory, pixels: np.ndarray
) -> None:
    engine = Engine.load(built, "trt")
    expected = answers(Engine.load(built, "ort-cpu"), pixels)
    assert answers(engine, pixels) == expected
    steps = sum(len(tokens) - 1 for tokens in expected)
    # Two answers of one prompt length each: their first two steps run freely.
    assert len(device.cuda.launches) >= steps - 2 * 2
    assert len(set(device.cuda.launches)) <= 2
    before = len(device.cuda.launches)
    assert answers(engine, pixels) == expected
    assert len(device.cuda.launches) > before
    engine.close()
    assert device.cuda.memory == {}
    assert device.cuda.graphs == {}


@pytest.mark.parametrize("device", ["10.16.1"], indirect=True)
@pytest.mark.parametrize("built", ["std24"], indirect=True)
def test_engine_that_cannot_be_captured_runs_step_by_step_and_says_so(
    device: FakeTensorRT,
    built: ModelDirectory,
    pixels: np.ndarray,
    caplog: pytest.LogCaptureFixture,
) -> None:
    device.cuda.refuse_capture = True
    engine = Engine.load(built, "trt")
    assert answers(engine, pixels) == answers(Engine.load(built, "ort-cpu"), pixels)
    assert device.cuda.launches == []
    assert caplog.text.count("run without a CUDA graph: capturing a CUDA graph failed") == 1
    engine.close()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tensorrt_version", "9.9.9", r"built for TensorRT 9.9.9.*build it again"),
        ("compute_capability", "12.0", r"built for compute capability 12.0, this is 8.7"),
        ("onnx_sha256", "0" * 64, r"built for the ONNX graph 0000"),
    ],
)
def test_engines_of_elsewhere_are_refused(
    built: ModelDirectory, field: str, value: str, message: str
) -> None:
    manifest = read_manifest(built.path / "manifest.json")
    engines = tuple(dataclasses.replace(e, **{field: value}) for e in manifest.engines)
    write_manifest(built.path / "manifest.json", dataclasses.replace(manifest, engines=engines))
    with pytest.raises(BackendUnavailableError, match=message):
        Engine.load(ModelDirectory.open(built.path), "trt")


def test_without_engines(built: ModelDirectory) -> None:
    manifest = read_manifest(built.path / "manifest.json")
    bare = dataclasses.replace(manifest, engines=())
    write_manifest(built.path / "manifest.json", bare)
    directory = ModelDirectory.open(built.path)
    with pytest.raises(BackendUnavailableError, match=r"python -m export tensorrt"):
        Engine.load(directory, "trt")
    engine = Engine.load(directory, "auto")
    assert engine.backend == "ort-cpu"
    assert "trt: the model directory holds no engines" in engine.backend_reason


def test_unloadable_engine(device: FakeTensorRT, built: ModelDirectory) -> None:
    device.plans.clear()
    with pytest.raises(ArtifactError, match=r"vision.engine could not be loaded"):
        Engine.load(built, "trt")


def test_shapes_outside_the_profiles(built: ModelDirectory) -> None:
    session = Engine.load(built, "trt").open_graph("project")
    inputs = {
        "patch_features": np.zeros((1, 16, 48), np.float32),
        "kept_indices": np.zeros(17, np.int64),
    }
    with pytest.raises(InferenceError, match=r"no optimisation profile.*rebuild"):
        session.run(inputs)
