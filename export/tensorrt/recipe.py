"""Build every engine of a model directory and add them to its manifest."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_atp.errors import BackendUnavailableError, OutOfMemoryError
from edge_atp.runtime import manifest as m
from edge_atp.runtime.cuda_memory import Cuda
from edge_atp.runtime.model_dir import ModelDirectory, file_sha256
from edge_atp.runtime.profiles import Profile, is_executed, profiles_for
from export.tensorrt.builder import BuildSettings, build_engine, memory_needed_bytes

_FOLDER = "engines"


def build_engines(
    directory: ModelDirectory,
    *,
    workspace_bytes: int,
    optimization_level: int,
    log: Callable[[str], None],
    trt: Any = None,
    cuda: Any = None,
) -> ModelDirectory:
    """Build the engines of all graphs that the runtime executes.

    The manifest is rewritten last: an interrupted build leaves a directory that loads as before.
    Args:
        trt, cuda: the bindings; None loads the installed ones.
    Raises:
        BackendUnavailableError: no TensorRT or no GPU.
        OutOfMemoryError: less device memory is free than the largest build needs.
        ArtifactError: a graph cannot be read by TensorRT.
    """
    trt = trt or _load_tensorrt()
    cuda = cuda or Cuda()
    manifest = directory.manifest
    graphs = [graph for graph in manifest.graphs if is_executed(graph.role)]
    planned = [(graph, profiles_for(graph, manifest)) for graph in graphs]
    _check_memory(directory, workspace_bytes, cuda.free_bytes(), log)
    (directory.path / _FOLDER).mkdir(exist_ok=True)
    compute = manifest.precision.compute
    settings = BuildSettings(
        workspace_bytes, optimization_level, compute == "fp16", int8=compute == "int8"
    )
    engines, files = [], [f for f in manifest.files if not f.role.endswith("_engine")]
    for graph, profiles in planned:
        file = _build(trt, directory.path, graph, profiles, settings, log)
        files.append(file)
        engines.append(
            m.EngineSpec(
                role=graph.role,
                file=file.path,
                tensorrt_version=str(trt.__version__),
                compute_capability=cuda.compute_capability,
                onnx_sha256=directory.sha256(graph.role),
                profiles={
                    str(i): {n: [b.min, b.opt, b.max] for n, b in profile.items()}
                    for i, profile in enumerate(profiles)
                },
            )
        )
    _publish(directory.path, replace(manifest, files=tuple(files), engines=tuple(engines)))
    return ModelDirectory.open(directory.path)


def _build(
    trt: Any,
    folder: Path,
    graph: m.GraphSpec,
    profiles: list[Profile],
    settings: BuildSettings,
    log: Callable[[str], None],
) -> m.FileSpec:
    """Build one graph's engine into the model directory; never leaves half a file."""
    cache = folder / _FOLDER / "timing.cache"
    plan = build_engine(trt, folder / graph.file, profiles, settings, cache, log)
    path = folder / _FOLDER / f"{graph.role}.engine"
    partial = path.with_suffix(".partial")
    partial.write_bytes(plan)
    partial.replace(path)
    name = f"{_FOLDER}/{path.name}"
    return m.FileSpec(f"{graph.role}_engine", name, file_sha256(path), path.stat().st_size)


def _publish(folder: Path, manifest: m.Manifest) -> None:
    partial = folder / f"{m.FILE_NAME}.partial"
    m.write_manifest(partial, manifest)
    partial.replace(folder / m.FILE_NAME)


def _check_memory(
    directory: ModelDirectory, workspace_bytes: int, free_bytes: int, log: Callable[[str], None]
) -> None:
    sizes = {spec.role: spec.bytes for spec in directory.manifest.files}
    roles = [graph.role for graph in directory.manifest.graphs if is_executed(graph.role)]
    largest = max(sizes.get(r, 0) + sizes.get(f"{r}_weights", 0) for r in roles)
    # 16-bit weights become float32 while TensorRT builds.
    storage = directory.manifest.precision.weight_storage
    needed = memory_needed_bytes(largest * (1 if storage == "fp32" else 2), workspace_bytes)
    log(f"largest build needs about {needed / 1e6:.0f} MB; {free_bytes / 1e6:.0f} MB are free")
    if needed > free_bytes:
        raise OutOfMemoryError(
            f"building needs about {needed / 1e6:.0f} MB of GPU memory, {free_bytes / 1e6:.0f} MB"
            " are free; close other programs or lower --workspace-mb"
        )


def _load_tensorrt() -> Any:
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        raise BackendUnavailableError(
            f"tensorrt cannot be imported ({error}); run this on the device, where JetPack or"
            " `pip install tensorrt` provides it"
        ) from error
