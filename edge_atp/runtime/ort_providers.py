"""ONNX Runtime's execution providers: which are usable here, and with which options.

Backends by name: ``ort-cpu``, ``ort-cuda``, ``ort-cuda-graph`` (CUDA, decode steps replayed as one
CUDA graph) and ``ort-trt`` (TensorRT inside ONNX Runtime: engines are built when a graph is first
opened on a device and cached there, one for each profile). What needs a GPU has not been run on
one yet.
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edge_atp.errors import BackendUnavailableError
from edge_atp.runtime.profiles import Profile
from edge_atp.runtime.sessions.base import Candidate, SessionOptions

PROVIDERS = {
    "ort-cuda": "CUDAExecutionProvider",
    "ort-cuda-graph": "CUDAExecutionProvider",
    "ort-trt": "TensorrtExecutionProvider",
    "ort-cpu": "CPUExecutionProvider",
}
# Fatal errors only: a library that is missing is said in the candidate's reason instead.
_LOG_FATAL, _LOG_WARNING = 4, 2
# TensorRT's library by the versions that ONNX Runtime 1.18 and later were built for.
_TENSORRT_LIBRARIES = ("libnvinfer.so.10", "libnvinfer.so.11", "libnvinfer.so.8")
_WORKSPACE_BYTES = 1 << 30

Provider = str | tuple[str, dict[str, str]]


def device_of(name: str) -> str:
    """Where a backend keeps tensors between runs: "cpu" or "cuda"."""
    return "cpu" if name == "ort-cpu" else "cuda"


def probe(name: str) -> Candidate:
    """Whether the provider is compiled in and its libraries and device are there."""
    provider = PROVIDERS[name]
    if provider not in ort.get_available_providers():
        return Candidate(name, False, f"onnxruntime {ort.__version__} has no {provider}")
    problem = None
    if device_of(name) == "cuda":
        problem = _cuda_problem()
    if name == "ort-trt":
        problem = problem or _tensorrt_problem()
    if problem:
        return Candidate(name, False, problem)
    return Candidate(name, True, f"onnxruntime {ort.__version__} with {provider}")


def providers(name: str, path: Path, options: SessionOptions) -> list[list[Provider]]:
    """The providers of one graph, with their options; a list for each session it is opened as.

    Returns:
        One list, or with ``ort-trt`` one per profile: see ``ort_profiles``.
    Raises:
        BackendUnavailableError: TensorRT cannot read the graph's dialect, or its steps cannot be
            replayed.
    """
    if replays(name, options):
        if options.dialect != "std24":
            raise BackendUnavailableError(
                f"backend {name}: a decoder of dialect {options.dialect!r} takes the cache's length"
                " on the host or changes its shapes, so its steps cannot be replayed as a CUDA"
                " graph; export with --dialect std24, or use ort-cuda"
            )
        return [[(PROVIDERS[name], {"enable_cuda_graph": "1"})]]
    if name != "ort-trt":
        return [[PROVIDERS[name]]]
    if not options.profiles:
        raise BackendUnavailableError(
            f"backend ort-trt: {path.name} is written in dialect {options.dialect!r}, which"
            " TensorRT does not read; export with --dialect prim18 (prim17 for TensorRT 8.6)"
        )
    # What TensorRT does not take goes to CUDA, not to the CPU.
    return [
        [(PROVIDERS[name], tensorrt_options(options, number)), PROVIDERS["ort-cuda"]]
        for number in range(len(options.profiles))
    ]


def replays(name: str, options: SessionOptions) -> bool:
    """Whether steps of this graph are to be replayed as a CUDA graph."""
    return name == "ort-cuda-graph" and options.role == "decoder"


def tensorrt_options(options: SessionOptions, number: int) -> dict[str, str]:
    """Options of the TensorRT provider for one graph and profile: shapes, precision, caches."""
    cache = cache_folder(options.graph_sha256)
    # ONNX Runtime names an engine by its graph and rebuilds one of another profile: a folder each.
    engines = cache / f"profile_{number}"
    engines.mkdir(exist_ok=True)
    profile = options.profiles[number]
    return {
        "trt_profile_min_shapes": _shapes(profile, "min"),
        "trt_profile_opt_shapes": _shapes(profile, "opt"),
        "trt_profile_max_shapes": _shapes(profile, "max"),
        "trt_max_workspace_size": str(_WORKSPACE_BYTES),
        # The file says where 16 and 8 bits are used; these let TensorRT follow it.
        "trt_fp16_enable": str(int(options.compute == "fp16")),
        "trt_int8_enable": str(int(options.compute == "int8")),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(engines),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
    }


def cache_folder(graph_sha256: str) -> Path:
    """Where this device keeps what was built from a graph.

    ONNX Runtime adds the GPU's compute capability to the names of the files in it.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    folder = cache / "edge_atp" / "engines" / platform.machine() / graph_sha256[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _shapes(profile: Profile, which: str) -> str:
    """As ONNX Runtime reads them: ``name:1x3x224x224,other:1x16``; inputs of rank 0 have none."""
    parts = []
    for name, bounds in profile.items():
        shape = getattr(bounds, which)
        if shape:
            parts.append(f"{name}:{'x'.join(map(str, shape))}")
    return ",".join(parts)


def _cuda_problem() -> str | None:
    """Why a buffer cannot be placed on the GPU, or None: a compiled-in provider proves little."""
    ort.set_default_logger_severity(_LOG_FATAL)
    try:
        ort.OrtValue.ortvalue_from_shape_and_type([1], np.float32, "cuda", 0)
    except Exception as error:  # the binding raises bare RuntimeError and its own types
        return f"no usable CUDA device ({first_line(error)})"
    finally:
        ort.set_default_logger_severity(_LOG_WARNING)
    return None


def _tensorrt_problem() -> str | None:
    for library in _TENSORRT_LIBRARIES:
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return None
    return f"TensorRT is not installed (none of {', '.join(_TENSORRT_LIBRARIES)} loads)"


def first_line(error: Any) -> str:
    """The first line of an error's message, without the place in ONNX Runtime's source."""
    text = str(error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    if line.startswith("/onnxruntime_src") and ") " in line:
        line = line.rsplit(") ", 1)[1]
    elif line.startswith("/onnxruntime_src") and "&" in line:
        line = line.rsplit("() ", 1)[-1]
    return line[:300]
