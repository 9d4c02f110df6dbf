"""Stand-ins for the bindings of TensorRT and CUDA: they record calls, and have exactly the
attributes that the given version has. Engines "run" on ONNX Runtime over simulated device memory,
so that a wrong address, shape or order of buffers gives wrong numbers.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from edge_atp.errors import InferenceError

# Which of the attributes that changed between versions exist; from 10.3 on read off the names in
# the published wheels of the bindings.
_EXPLICIT, _TYPED = ("EXPLICIT_BATCH", 0), ("STRONGLY_TYPED", 1)
VERSIONS: dict[str, Any] = {
    "8.6.1": {"network": (_EXPLICIT,), "fp16": True, "int64": False},
    "10.3.0": {"network": (_EXPLICIT, _TYPED), "fp16": True, "int64": True},
    "10.13.0": {"network": (_EXPLICIT, _TYPED), "fp16": True, "int64": True},
    "10.16.1": {"network": (_EXPLICIT, _TYPED), "fp16": True, "int64": True},
    "11.4.0": {"network": (_TYPED,), "fp16": False, "int64": True},
}
_TYPE_NAMES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64", "int32": "INT32"}


class FakeCuda:
    """Device memory as byte arrays at made-up addresses."""

    stream = 77

    def __init__(self, free: int = 8 << 30, compute_capability: str = "8.7") -> None:
        self.compute_capability = compute_capability
        self.memory: dict[int, np.ndarray] = {}
        self._free = free
        self._next = 4096
        # Work recorded since begin_capture, None outside of a capture.
        self.recording: list[Any] | None = None
        self.graphs: dict[int, list[Any]] = {}
        self.launches: list[int] = []
        self.refuse_capture = False

    def free_bytes(self) -> int:
        return self._free

    def allocate(self, num_bytes: int) -> int:
        address, self._next = self._next, self._next + num_bytes + 4096
        # Not zeros: code that reads what nobody wrote must fail.
        self.memory[address] = np.full(max(num_bytes, 1), 0xAB, np.uint8)
        return address

    def free(self, address: int) -> None:
        del self.memory[address]

    def upload(self, array: np.ndarray, address: int) -> None:
        assert self.recording is None, "a copy from the host inside a captured graph"
        assert array.flags.c_contiguous
        self.memory[address][: array.nbytes] = array.reshape(-1).view(np.uint8)

    def download(self, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.memory[address][:size].view(dtype).reshape(shape).copy()

    def synchronize(self) -> None:
        assert self.recording is None, "waiting for a stream that is being captured"

    def begin_capture(self) -> None:
        self.recording = []

    def end_capture(self) -> int:
        work, self.recording = self.recording, None
        if self.refuse_capture:
            raise InferenceError("capturing a CUDA graph failed with CUDA error 901")
        number = len(self.graphs) + 1
        self.graphs[number] = work or []
        return number

    def launch(self, graph: int) -> None:
        self.launches.append(graph)
        for work in self.graphs[graph]:
            work()

    def release_graph(self, graph: int) -> None:
        del self.graphs[graph]


class FakeTensorRT:
    """The ``tensorrt`` module of one version."""

    def __init__(self, version: str, cuda: FakeCuda, refuse: str = "") -> None:
        has = VERSIONS[version]
        self.__version__ = version
        self.calls: list[tuple[Any, ...]] = []
        self.cuda = cuda
        self.int64 = has["int64"]
        self.refuse = refuse
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**dict(has["network"]))
        self.BuilderFlag = SimpleNamespace(
            **({"FP16": "fp16", "INT8": "int8"} if has["fp16"] else {})
        )
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
        self.TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
        self.plans: dict[bytes, tuple[Path, list[dict[str, Any]]]] = {}

    class Logger:
        WARNING, ERROR = 1, 2

        def __init__(self, level: int) -> None:
            self.level = level

    def Builder(  # noqa: N802
        self, logger: Any
    ) -> Any:
        return _Builder(self)

    def OnnxParser(  # noqa: N802
        self, network: Any, logger: Any
    ) -> Any:
        return _Parser(self, network)

    def Runtime(  # noqa: N802
        self, logger: Any
    ) -> Any:
        def deserialize(content: bytes) -> Any:
            return _Engine(self, *self.plans[content]) if content in self.plans else None

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


class _Builder:
    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt

    def create_network(self, flags: int) -> Any:
        self._trt.calls.append(("create_network", flags))
        return SimpleNamespace(path=None)

    def create_builder_config(self) -> Any:
        return _Config(self._trt)

    def create_optimization_profile(self) -> Any:
        shapes: dict[str, Any] = {}
        return SimpleNamespace(
            shapes=shapes, set_shape=lambda name, *bounds: shapes.update({name: bounds})
        )

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        self._trt.calls.append(("build", network.path.name, len(config.profiles)))
        if self._trt.refuse == "build":
            return None
        plan = f"plan of {network.path.name}".encode()
        self._trt.plans[plan] = (network.path, config.profiles)
        return plan


class _Config:
    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt
        self.builder_optimization_level = None
        self.profiles: list[dict[str, Any]] = []

    def set_memory_pool_limit(self, pool: str, num_bytes: int) -> None:
        self._trt.calls.append(("set_memory_pool_limit", pool, num_bytes))

    def set_flag(self, flag: str) -> None:
        self._trt.calls.append(("set_flag", flag))

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, content: bytes) -> Any:
        self._trt.calls.append(("create_timing_cache", content))
        return SimpleNamespace(serialize=lambda: b"timings")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return not ignore_mismatch

    def get_timing_cache(self) -> Any:
        return self._cache


class _Parser:
    def __init__(self, trt: FakeTensorRT, network: Any) -> None:
        self._trt, self._network = trt, network
        self.num_errors = 0

    def parse_from_file(self, path: str) -> bool:
        self._network.path = Path(path)
        self.num_errors = int(self._trt.refuse == "parse")
        return not self.num_errors

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(desc=lambda: f"unsupported node number {index}")


class _Engine:
    def __init__(self, trt: FakeTensorRT, path: Path, profiles: list[dict[str, Any]]) -> None:
        self._trt, self.profiles = trt, profiles
        self.session = ort.InferenceSession(str(path))
        graph = onnx.load(str(path), load_external_data=False).graph
        self.inputs, self.outputs = ([v.name for v in vs] for vs in (graph.input, graph.output))
        self.types = {}
        for value in (*graph.input, *graph.output):
            dtype = str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
            # TensorRT 8 has no 64-bit integers; its parser makes such inputs 32 bits wide.
            self.types[value.name] = dtype if trt.int64 else dtype.replace("int64", "int32")
        self.num_io_tensors = len(self.types)
        self.num_optimization_profiles = len(profiles)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=_TYPE_NAMES[self.types[name]])

    def get_tensor_profile_shape(self, name: str, index: int) -> Any:
        return self.profiles[index][name]

    def create_execution_context(self) -> Any:
        return _Context(self._trt, self)


class _Context:
    def __init__(self, trt: FakeTensorRT, engine: _Engine) -> None:
        self._trt, self._engine = trt, engine
        self._profile: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._trt.calls.append(("profile", index))
        self._profile = self._engine.profiles[index]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._profile[name]
        self._shapes[name] = tuple(shape)
        return all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        (value,) = (o for o in self._engine.session.get_outputs() if o.name == name)
        known = {}
        for graph_input in self._engine.session.get_inputs():
            for label, side in zip(graph_input.shape, self._shapes[graph_input.name], strict=True):
                known[label] = side
        return tuple(known.get(side, side) for side in value.shape)

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self._trt.cuda
        assert stream == cuda.stream
        # A captured run keeps the addresses and shapes it was recorded with.
        addresses, shapes = dict(self._addresses), dict(self._shapes)
        if cuda.recording is not None:
            cuda.recording.append(lambda: self._compute(addresses, shapes))
        else:
            self._compute(addresses, shapes)
        return True

    def _compute(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        engine, cuda = self._engine, self._trt.cuda
        feeds = {}
        for name in engine.inputs:
            stored = cuda.download(addresses[name], shapes[name], engine.types[name])
            wanted = "int64" if engine.types[name] == "int32" else engine.types[name]
            feeds[name] = stored.astype(wanted)
        for name, value in zip(engine.outputs, engine.session.run(None, feeds), strict=True):
            assert value.shape == tuple(self.get_tensor_shape(name)), name
            cuda.upload(np.ascontiguousarray(value), addresses[name])
