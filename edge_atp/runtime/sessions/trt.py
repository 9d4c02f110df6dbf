"""TensorRT backend: runs engines that ``python -m export tensorrt`` built on this device.

Only calls that TensorRT 8.6 to 11 share are used. An engine of another TensorRT version or GPU is
refused before it is loaded. Not yet run on a GPU: its calls are checked against a recording
stand-in for the bindings only (tests/export/test_trt_session.py).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import ArtifactError, BackendUnavailableError, EdgeAtpError, InferenceError
from edge_atp.runtime.cuda_memory import Cuda
from edge_atp.runtime.sessions.base import Arrays, Candidate, SessionOptions
from edge_atp.runtime.trt_buffers import Buffer, TrtCarry, TrtState
from edge_atp.runtime.trt_replay import Replay

CANDIDATES = ("trt",)

# By the name of TensorRT's enumeration: `trt.nptype` does not know every type in every version.
_NUMPY_TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT32": "int32",
    "INT64": "int64",
    "INT8": "int8",
    "BOOL": "bool",
}


def probe(name: str) -> Candidate:
    """Whether TensorRT and a GPU are there; says nothing about engines."""
    if importlib.util.find_spec("tensorrt") is None:
        return Candidate(name, False, "the tensorrt package is not installed")
    try:
        capability = Cuda().compute_capability
        version = importlib.import_module("tensorrt").__version__
    except (EdgeAtpError, ImportError, OSError) as error:
        return Candidate(name, False, f"tensorrt is installed, but {error}")
    return Candidate(name, True, f"tensorrt {version} on a GPU of compute capability {capability}")


def open_session(path: Path, name: str, options: SessionOptions) -> TrtSession:
    """Load the engine built from the graph at ``path``.

    Raises:
        BackendUnavailableError: no engine was built for it, or for another device.
        ArtifactError: the engine file is damaged.
    """
    spec = options.engine
    if spec is None or options.engine_path is None:
        raise BackendUnavailableError(
            f"backend {name}: no TensorRT engine for {path.name}; build it on this device with"
            f" `python -m export tensorrt {path.parent}`"
        )
    trt, cuda = importlib.import_module("tensorrt"), Cuda()
    rebuild = f"build it again with `python -m export tensorrt {path.parent}`"
    for what, built, here in (
        ("TensorRT", spec.tensorrt_version, str(trt.__version__)),
        ("compute capability", spec.compute_capability, cuda.compute_capability),
        ("the ONNX graph", spec.onnx_sha256, options.graph_sha256),
    ):
        if built != here:
            raise BackendUnavailableError(
                f"{options.engine_path.name} was built for {what} {built[:16]}, this is"
                f" {here[:16]}; {rebuild}"
            )
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(options.engine_path.read_bytes())
    if engine is None:
        raise ArtifactError(f"{options.engine_path} could not be loaded; {rebuild}")
    return TrtSession(trt, engine, cuda)


class TrtSession:
    """One engine; one execution context per optimisation profile."""

    def __init__(self, trt: Any, engine: Any, cuda: Cuda) -> None:
        self._trt, self._engine, self._cuda = trt, engine, cuda
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        mode = trt.TensorIOMode.INPUT
        self._inputs = tuple(n for n in names if engine.get_tensor_mode(n) == mode)
        self._outputs = tuple(n for n in names if n not in self._inputs)
        self._buffers = {name: Buffer(cuda) for name in names}
        self._contexts: dict[int, Any] = {}
        self._kept: list[TrtCarry | TrtState] = []
        self._replay = Replay(cuda)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Inputs of the engine, carried ones included."""
        return self._inputs

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: tuple[str, ...] | None = None
    ) -> Arrays:
        """Run the engine; returns ``outputs`` by name, None for every output."""
        return self._execute(inputs, None, self._outputs if outputs is None else outputs)

    def allocate_carry(
        self, aliases: Mapping[str, str], max_shape: tuple[int, ...], dtype: type[np.generic]
    ) -> TrtCarry:
        """Two buffers of the largest shape per alias (input name -> output name)."""
        carry = TrtCarry(self._cuda, aliases, max_shape, dtype)
        self._kept.append(carry)
        return carry

    def allocate_state(
        self, aliases: Mapping[str, str], shape: tuple[int, ...], dtype: type[np.generic]
    ) -> TrtState:
        """One zeroed buffer per alias, input and output at once."""
        state = TrtState(self._cuda, aliases, shape, dtype)
        self._kept.append(state)
        return state

    def run_in_place(
        self, inputs: Mapping[str, NDArray[Any]], state: TrtState, outputs: tuple[str, ...]
    ) -> Arrays:
        """Run on ``state``; steps that repeat their shape are replayed as a CUDA graph."""
        return self._execute(inputs, state, outputs)

    def run_carrying(
        self, inputs: Mapping[str, NDArray[Any]], carry: TrtCarry, outputs: tuple[str, ...]
    ) -> Arrays:
        """Run with the carried values as inputs; their outputs stay on the device."""
        return self._execute(inputs, carry, outputs)

    def close(self) -> None:
        """Free the buffers; the session cannot be used afterwards."""
        for buffer in self._buffers.values():
            buffer.release()
        for kept in self._kept:
            kept.release()
        self._kept.clear()
        self._replay.release()
        self._contexts.clear()

    def _execute(
        self,
        inputs: Mapping[str, NDArray[Any]],
        kept: TrtCarry | TrtState | None,
        outputs: tuple[str, ...],
    ) -> Arrays:
        context = self._context(inputs)
        for name, array in inputs.items():
            dtype = self._dtype(name)
            host = np.ascontiguousarray(array, dtype)
            self._set_shape(context, name, host.shape)
            address = self._buffers[name].reserve(host.nbytes)
            self._cuda.upload(host, address)
            context.set_tensor_address(name, address)
        addresses = self._place(context, kept)
        # Every output needs memory on the device; only those asked for are copied from there.
        kept_outputs = set(kept.aliases.values()) if kept else set()
        shapes = {}
        for name in (n for n in self._outputs if n not in kept_outputs):
            shapes[name] = tuple(context.get_tensor_shape(name))
            dtype = self._dtype(name)
            size = int(np.prod(shapes[name])) * dtype.itemsize
            context.set_tensor_address(name, self._buffers[name].reserve(size))
        if isinstance(kept, TrtState):
            sides = tuple((name, array.shape) for name, array in inputs.items())
            used = tuple(self._buffers[name].address for name in (*inputs, *shapes))
            self._replay.run((sides, used, addresses), lambda: self._enqueue(context))
        else:
            self._enqueue(context)
        if kept:
            first = next(iter(kept.aliases.values()))
            kept.after_run(tuple(context.get_tensor_shape(first)))
        return {name: self._fetch(name, shapes[name]) for name in outputs}

    def _place(self, context: Any, kept: TrtCarry | TrtState | None) -> tuple[int, ...]:
        """Tell the context where kept tensors lie; returns the addresses."""
        if kept is None:
            return ()
        addresses = []
        for name, source, target in kept.places():
            self._set_shape(context, name, kept.shape)
            context.set_tensor_address(name, source)
            context.set_tensor_address(kept.aliases[name], target)
            addresses += [source, target]
        return tuple(addresses)

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._cuda.stream):
            raise InferenceError("TensorRT failed to run the engine; its log names the layer")

    def _fetch(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        dtype = self._dtype(name)
        return self._cuda.download(self._buffers[name].address, shape, dtype)

    def _dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(_NUMPY_TYPES[self._engine.get_tensor_dtype(name).name])

    def _context(self, inputs: Mapping[str, NDArray[Any]]) -> Any:
        """The context of the first profile that covers the inputs' shapes."""
        for index in range(self._engine.num_optimization_profiles):
            if all(self._covers(name, array.shape, index) for name, array in inputs.items()):
                if index not in self._contexts:
                    context = self._engine.create_execution_context()
                    context.set_optimization_profile_async(index, self._cuda.stream)
                    self._contexts[index] = context
                return self._contexts[index]
        shapes = {name: array.shape for name, array in inputs.items()}
        raise InferenceError(f"no optimisation profile of the engine covers {shapes}; rebuild it")

    def _covers(self, name: str, shape: tuple[int, ...], index: int) -> bool:
        low, _, high = self._engine.get_tensor_profile_shape(name, index)
        bounds = zip(low, shape, high, strict=True)
        return all(lowest <= side <= highest for lowest, side, highest in bounds)

    def _set_shape(self, context: Any, name: str, shape: tuple[int, ...]) -> None:
        if not context.set_input_shape(name, shape):
            raise InferenceError(f"TensorRT refused shape {shape} for input {name!r}; rebuild it")
