"""ONNX Runtime backend: the CPU, CUDA and TensorRT execution providers.

Buffers that live between runs (the KV cache) are bound to the same device memory as input and
output, so that the decoder appends in place and nothing is copied per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edge_atp.errors import (
    ArtifactError,
    BackendUnavailableError,
    InferenceError,
    OutOfMemoryError,
)
from edge_atp.runtime.ort_fixed import FixedSteps
from edge_atp.runtime.ort_profiles import SessionPerProfile
from edge_atp.runtime.ort_providers import (
    PROVIDERS,
    device_of,
    first_line,
    probe,
    providers,
    replays,
)
from edge_atp.runtime.sessions.base import Arrays, SessionOptions
from edge_atp.runtime.threads import physical_cores

__all__ = ["CANDIDATES", "open_session", "probe"]

CANDIDATES = tuple(PROVIDERS)

# ONNX Runtime logs through its own channel; errors reach the caller as exceptions.
_LOG_ERRORS_ONLY = 3
# What ONNX Runtime says of an opset that is newer than itself.
_TOO_NEW = "is under development and support for this is limited"


def open_session(path: Path, name: str, options: SessionOptions) -> OrtSession:
    """Open a graph with one provider.

    Raises:
        ArtifactError: the file is no valid graph.
        OutOfMemoryError: it does not fit into the device's memory.
        BackendUnavailableError: the provider did not load (ONNX Runtime itself would continue on
            the CPU and only log it).
    """
    sessions = [
        _open(path, name, wanted, options.num_threads) for wanted in providers(name, path, options)
    ]
    profiles = options.profiles if len(sessions) > 1 else ()
    return OrtSession(
        SessionPerProfile(sessions, profiles),
        device_of(name),
        fixed_addresses=replays(name, options),
    )


def _open(path: Path, name: str, wanted: list[Any], num_threads: int) -> Any:
    settings = ort.SessionOptions()
    settings.log_severity_level = _LOG_ERRORS_ONLY
    settings.intra_op_num_threads = num_threads or physical_cores()
    settings.inter_op_num_threads = 1
    # Spinning threads would take the cores from the camera driver and the planner.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(str(path), settings, providers=wanted)
    except Exception as error:
        if _is_memory(error):
            raise _inference_error(error) from error
        fix = "export the model again"
        if _TOO_NEW in str(error):
            fix = "install a newer onnxruntime, or export with --dialect ort-gqa, prim17 or prim18"
        raise ArtifactError(
            f"{path} cannot be loaded by onnxruntime {ort.__version__}: {first_line(error)}; {fix}"
        ) from error
    used = session.get_providers()[0]
    if used != PROVIDERS[name]:
        raise BackendUnavailableError(
            f"backend {name}: {PROVIDERS[name]} did not load, onnxruntime would use {used}"
        )
    return session


class OrtState:
    """Device buffers bound to a session's inputs and outputs.

    Args:
        arrays: the buffers' memory as arrays; read and written directly on the CPU.
    """

    def __init__(
        self, aliases: Mapping[str, str], arrays: Mapping[str, NDArray[Any]], device: str
    ) -> None:
        self.aliases = dict(aliases)
        self.values = {
            name: ort.OrtValue.ortvalue_from_numpy(array, device, 0)
            for name, array in arrays.items()
        }
        # On the CPU a value is the array's own memory; elsewhere it is a copy on the device.
        self._host = dict(arrays) if device == "cpu" else None
        # One per session and set of outputs asked for: what was bound once stays bound.
        self.bindings: dict[tuple[int, tuple[str, ...]], Any] = {}

    @property
    def num_bytes(self) -> int:
        """Size of all buffers together."""
        return sum(int(value.tensor_size_in_bytes()) for value in self.values.values())

    def read(self, name: str, length: int) -> NDArray[Any]:
        """A copy on the host of the first ``length`` entries along axis 2."""
        whole = self._host[name] if self._host else self.values[name].numpy()
        part: NDArray[Any] = whole[:, :, :length].copy()
        return part

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Replace the first entries along axis 2; those behind them are undefined."""
        if self._host:
            self._host[name][:, :, : array.shape[2]] = array
            return
        whole = np.zeros(self.values[name].shape(), array.dtype)
        whole[:, :, : array.shape[2]] = array
        self.values[name].update_inplace(whole)


class OrtCarry:
    """Device tensors that one run puts out and the next takes in."""

    def __init__(self, aliases: Mapping[str, str], device: str) -> None:
        self.aliases = dict(aliases)
        self.values: dict[str, Any] = {}
        self._device = device

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of each of them now."""
        return tuple(next(iter(self.values.values())).shape())

    @property
    def num_bytes(self) -> int:
        """Memory they hold."""
        return sum(int(value.tensor_size_in_bytes()) for value in self.values.values())

    def get(self, name: str) -> NDArray[Any]:
        """The value of an input, copied to the host."""
        value: NDArray[Any] = self.values[name].numpy()
        return value

    def set(self, name: str, array: NDArray[Any]) -> None:
        """Replace the value of an input."""
        copy = np.array(array, order="C")
        self.values[name] = ort.OrtValue.ortvalue_from_numpy(copy, self._device, 0)


class OrtSession:
    """One graph in ONNX Runtime; see ``sessions.base.Session``."""

    def __init__(
        self, sessions: SessionPerProfile, device: str, *, fixed_addresses: bool = False
    ) -> None:
        self._sessions = sessions
        self._device = device
        self._fixed = FixedSteps(sessions.first, device) if fixed_addresses else None
        self._inputs = tuple(i.name for i in sessions.first.get_inputs())
        self._outputs = tuple(o.name for o in sessions.first.get_outputs())

    @property
    def input_names(self) -> tuple[str, ...]:
        """Inputs of the graph, state included."""
        return self._inputs

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: tuple[str, ...] | None = None
    ) -> Arrays:
        """Run the graph; returns ``outputs`` by name, None for every output."""
        names = self._outputs if outputs is None else outputs
        session = self._sessions.covering(inputs)
        try:
            results = session.run(list(names), dict(inputs))
        except Exception as error:
            raise _inference_error(error) from error
        return dict(zip(names, results, strict=True))

    def allocate_state(
        self, aliases: Mapping[str, str], shape: tuple[int, ...], dtype: type[np.generic]
    ) -> OrtState:
        """Allocate one zeroed device buffer per alias."""
        try:
            arrays = {name: np.zeros(shape, dtype) for name in aliases}
            return OrtState(aliases, arrays, self._device)
        except Exception as error:
            raise _inference_error(error) from error

    def run_in_place(
        self, inputs: Mapping[str, NDArray[Any]], state: OrtState, outputs: tuple[str, ...]
    ) -> Arrays:
        """Run with ``state`` bound to its inputs and outputs; returns ``outputs`` by name."""
        session = self._sessions.covering(inputs)
        try:
            if self._fixed:
                return self._fixed.run(inputs, state, outputs)
            key = (id(session), outputs)
            binding = state.bindings.get(key) or self._bind(session, state)
            state.bindings[key] = binding
            for name, array in inputs.items():
                binding.bind_cpu_input(name, array)
            # Output shapes change with the inputs, so each run allocates these few anew.
            for name in outputs:
                binding.bind_output(name, "cpu")
            session.run_with_iobinding(binding)
            return dict(zip(outputs, self._fetch(binding, outputs), strict=True))
        except Exception as error:
            raise _inference_error(error) from error

    def allocate_carry(
        self, aliases: Mapping[str, str], max_shape: tuple[int, ...], dtype: type[np.generic]
    ) -> OrtCarry:
        """Empty device tensors; ONNX Runtime allocates each successor itself."""
        carry = OrtCarry(aliases, self._device)
        empty = np.zeros((*max_shape[:2], 0, *max_shape[3:]), dtype)
        for name in aliases:
            carry.set(name, empty)
        return carry

    def run_carrying(
        self, inputs: Mapping[str, NDArray[Any]], carry: OrtCarry, outputs: tuple[str, ...]
    ) -> Arrays:
        """Run with the carried values; their successors stay on the device."""
        session = self._sessions.covering(inputs)
        try:
            binding = session.io_binding()
            for name, array in inputs.items():
                binding.bind_cpu_input(name, array)
            for name, output in carry.aliases.items():
                binding.bind_ortvalue_input(name, carry.values[name])
                binding.bind_output(output, self._device)
            for name in outputs:
                binding.bind_output(name, "cpu")
            session.run_with_iobinding(binding)
            results = binding.get_outputs()
            carry.values = dict(zip(carry.aliases, results, strict=False))
            fetched = results[len(carry.aliases) :]
            return {n: value.numpy() for n, value in zip(outputs, fetched, strict=True)}
        except Exception as error:
            raise _inference_error(error) from error

    def close(self) -> None:
        """Release the graph."""
        self._sessions = SessionPerProfile(())
        self._fixed = None

    def _bind(self, session: Any, state: OrtState) -> Any:
        binding = session.io_binding()
        for name, output in state.aliases.items():
            binding.bind_ortvalue_input(name, state.values[name])
            binding.bind_ortvalue_output(output, state.values[name])
        return binding

    def _fetch(self, binding: Any, outputs: tuple[str, ...]) -> list[NDArray[Any]]:
        bound = binding.get_outputs()
        # `get_outputs` lists in binding order: the state's first, those bound last at the end.
        return [value.numpy() for value in bound[len(bound) - len(outputs) :]]


def _inference_error(error: BaseException) -> InferenceError:
    message = first_line(error)
    if _is_memory(error):
        return OutOfMemoryError(
            f"the inference backend ran out of memory: {message}; lower the keep ratio, max_kv"
            " or the number of models on this device"
        )
    return InferenceError(f"the inference backend failed: {message}")


def _is_memory(error: BaseException) -> bool:
    lowered = first_line(error).lower()
    return isinstance(error, MemoryError) or any(
        mark in lowered for mark in ("failed to allocate", "out of memory", "bad_alloc")
    )
