"""Build one TensorRT engine from one ONNX graph.

Written against the calls that TensorRT 8.6 to 11 share; where versions differ the attribute is
looked for, never the version number. Precision is the ONNX file's: with strongly typed networks
TensorRT follows it, older versions get the FP16 or INT8 flag when the file holds such products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_atp.errors import ArtifactError, OutOfMemoryError
from edge_atp.runtime.profiles import Profile


@dataclass(frozen=True)
class BuildSettings:
    """How to build.

    workspace_bytes: most scratch memory a layer may use.
    optimization_level: 0 (fast build) to 5 (fast engine).
    half_precision: the graph computes products in float16.
    int8: the graph holds int8 Q/DQ pairs.
    """

    workspace_bytes: int
    optimization_level: int = 3
    half_precision: bool = False
    int8: bool = False


def memory_needed_bytes(weight_bytes: int, workspace_bytes: int) -> int:
    """Peak memory of a build: about four times the float32 weights, and the workspace."""
    return 4 * weight_bytes + workspace_bytes


def build_engine(
    trt: Any,
    onnx_path: Path,
    profiles: list[Profile],
    settings: BuildSettings,
    timing_cache: Path,
    log: Callable[[str], None],
) -> bytes:
    """Parse and build; returns the serialised engine.

    Args:
        trt: the ``tensorrt`` module.
        timing_cache: read when it is there, written afterwards; makes a second build fast.
    Raises:
        ArtifactError: the parser refuses the graph; its messages are in the error.
        OutOfMemoryError: TensorRT could not build, which almost always is memory.
    """
    builder = trt.Builder(trt.Logger(trt.Logger.WARNING))
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.WARNING))
    if not parser.parse_from_file(str(onnx_path)):
        problems = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise ArtifactError(f"TensorRT {trt.__version__} cannot read {onnx_path}: {problems}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if hasattr(config, "builder_optimization_level"):
        config.builder_optimization_level = settings.optimization_level
    for wanted, flag in ((settings.half_precision, "FP16"), (settings.int8, "INT8")):
        if wanted and not _strongly_typed(trt) and hasattr(trt.BuilderFlag, flag):
            config.set_flag(getattr(trt.BuilderFlag, flag))
    for profile in profiles:
        config.add_optimization_profile(_profile(builder, profile))
    cache = config.create_timing_cache(timing_cache.read_bytes() if timing_cache.is_file() else b"")
    config.set_timing_cache(cache, False)
    log(f"building {onnx_path.stem} ({len(profiles)} profiles)")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise OutOfMemoryError(
            f"TensorRT {trt.__version__} could not build {onnx_path.name}; close other programs,"
            " lower --workspace-mb, or export a smaller model"
        )
    timing_cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _network_flags(trt: Any) -> int:
    """Explicit batch where it must be asked for, strong typing where it exists."""
    flags = 0
    for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED"):
        flag = getattr(trt.NetworkDefinitionCreationFlag, name, None)
        if flag is not None:
            flags |= 1 << int(flag)
    return flags


def _strongly_typed(trt: Any) -> bool:
    # TensorRT 11 types every network strongly: it has no BuilderFlag.FP16 and may drop this flag.
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") or not hasattr(
        trt.BuilderFlag, "FP16"
    )


def _profile(builder: Any, profile: Profile) -> Any:
    built = builder.create_optimization_profile()
    for name, bounds in profile.items():
        built.set_shape(name, bounds.min, bounds.opt, bounds.max)
    return built
