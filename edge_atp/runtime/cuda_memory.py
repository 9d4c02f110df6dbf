"""Device memory and streams through NVIDIA's CUDA bindings for Python, loaded when first used.

The only file that calls CUDA itself; TensorRT sessions get a ``Cuda`` object, and tests give them
a stand-in.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import BackendUnavailableError, InferenceError, OutOfMemoryError

# The package moved its runtime API; older JetPacks carry the older place.
_MODULES = ("cuda.bindings.runtime", "cuda.cudart")


class Cuda:
    """One device and one stream.

    Raises:
        BackendUnavailableError: no CUDA bindings, or no device.
    """

    def __init__(self) -> None:
        self._api = _bindings()
        self._check(self._api.cudaSetDevice(0), "selecting GPU 0")
        (self.stream,) = self._check(self._api.cudaStreamCreate(), "creating a stream")

    @property
    def compute_capability(self) -> str:
        """Such as "8.7" (Orin)."""
        attribute = self._api.cudaDeviceAttr
        parts = [
            self._check(self._api.cudaDeviceGetAttribute(kind, 0), "asking for the GPU's type")[0]
            for kind in (
                attribute.cudaDevAttrComputeCapabilityMajor,
                attribute.cudaDevAttrComputeCapabilityMinor,
            )
        ]
        return f"{parts[0]}.{parts[1]}"

    def free_bytes(self) -> int:
        """Device memory that is free now."""
        free, _ = self._check(self._api.cudaMemGetInfo(), "asking for free memory")
        return int(free)

    def allocate(self, num_bytes: int) -> int:
        """Address of new device memory.

        Raises:
            OutOfMemoryError: there is not enough.
        """
        result = self._api.cudaMalloc(max(num_bytes, 1))
        if int(result[0]) != 0:
            raise OutOfMemoryError(
                f"{num_bytes} bytes of GPU memory could not be allocated"
                f" ({self.free_bytes()} are free); keep fewer tokens or lower max_kv"
            )
        return int(result[1])

    def free(self, address: int) -> None:
        """Give memory back."""
        self._check(self._api.cudaFree(address), "freeing memory")

    def upload(self, array: NDArray[Any], address: int) -> None:
        """Copy a contiguous array to the device, in stream order."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._check(
            self._api.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, self.stream),
            "copying to the GPU",
        )

    def download(self, address: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Copy from the device and wait for it."""
        array: NDArray[Any] = np.empty(shape, dtype)
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._check(
            self._api.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, self.stream),
            "copying from the GPU",
        )
        self.synchronize()
        return array

    def synchronize(self) -> None:
        """Wait for everything in the stream."""
        self._check(self._api.cudaStreamSynchronize(self.stream), "waiting for the GPU")

    def begin_capture(self) -> None:
        """From here to ``end_capture`` the stream records work and runs none."""
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._check(self._api.cudaStreamBeginCapture(self.stream, mode), "starting a CUDA graph")

    def end_capture(self) -> Any:
        """The recorded work as an executable graph."""
        action = "capturing a CUDA graph"
        (graph,) = self._check(self._api.cudaStreamEndCapture(self.stream), action)
        # Before CUDA 12 the plain call took other arguments; this one is in both.
        (executable,) = self._check(self._api.cudaGraphInstantiateWithFlags(graph, 0), action)
        self._check(self._api.cudaGraphDestroy(graph), action)
        return executable

    def launch(self, executable: Any) -> None:
        """Run a graph, in stream order."""
        self._check(self._api.cudaGraphLaunch(executable, self.stream), "launching a CUDA graph")

    def release_graph(self, executable: Any) -> None:
        """Destroy a graph."""
        self._check(self._api.cudaGraphExecDestroy(executable), "destroying a CUDA graph")

    @staticmethod
    def _check(result: Any, action: str) -> tuple[Any, ...]:
        code, *values = result
        if int(code) != 0:
            raise InferenceError(f"{action} failed with CUDA error {code}")
        return tuple(values)


def _bindings() -> Any:
    for name in _MODULES:
        try:
            api = importlib.import_module(name)
        except ImportError:
            continue
        code, count = api.cudaGetDeviceCount()
        if int(code) != 0 or count < 1:
            raise BackendUnavailableError(f"no CUDA device was found (error {code})")
        return api
    raise BackendUnavailableError("the CUDA bindings are missing; `pip install cuda-python`")
