"""Device memory of a TensorRT session: inputs and outputs, and caches that live between runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_atp.runtime.cuda_memory import Cuda


class Buffer:
    """Device memory that grows when more is needed."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._size = 0
        self.address = 0

    def reserve(self, num_bytes: int) -> int:
        """The address of at least that much memory; it changes only when the buffer grows."""
        if num_bytes > self._size or not self.address:
            self.release()
            self.address = self._cuda.allocate(num_bytes)
            self._size = num_bytes
        return self.address

    def release(self) -> None:
        """Give the memory back."""
        if self.address:
            self._cuda.free(self.address)
        self.address = self._size = 0


class TrtState:
    """Buffers that one engine reads and writes in place: input and output are one address."""

    def __init__(
        self, cuda: Cuda, aliases: Mapping[str, str], shape: tuple[int, ...], dtype: Any
    ) -> None:
        self._cuda = cuda
        self.aliases = dict(aliases)
        self.shape = shape
        self._dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * self._dtype.itemsize
        self.num_bytes = len(self.aliases) * size
        self._addresses = {name: cuda.allocate(size) for name in self.aliases}
        # The attention bias hides what is not written yet, but NaN in it would spread.
        for name in self.aliases:
            cuda.upload(np.zeros(shape, self._dtype), self._addresses[name])
        cuda.synchronize()

    def places(self) -> Iterator[tuple[str, int, int]]:
        """(input, its address, its output's address)."""
        for name in self.aliases:
            yield name, self._addresses[name], self._addresses[name]

    def after_run(self, shape: tuple[int, ...]) -> None:
        """Nothing moves."""

    def read(self, name: str, length: int) -> NDArray[Any]:
        """A copy on the host of the first ``length`` entries along axis 2."""
        whole = self._cuda.download(self._addresses[name], self.shape, self._dtype)
        part: NDArray[Any] = whole[:, :, :length].copy()
        return part

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Replace the first entries along axis 2; those behind them are undefined."""
        whole = np.zeros(self.shape, self._dtype)
        whole[:, :, : array.shape[2]] = array
        self._cuda.upload(whole, self._addresses[name])
        self._cuda.synchronize()

    def release(self) -> None:
        """Free the buffers."""
        for address in self._addresses.values():
            self._cuda.free(address)


class TrtCarry:
    """Outputs that become the next run's inputs, in two sets of device buffers used in turn."""

    def __init__(
        self, cuda: Cuda, aliases: Mapping[str, str], max_shape: tuple[int, ...], dtype: Any
    ) -> None:
        self._cuda = cuda
        self.aliases = dict(aliases)
        self.dtype = np.dtype(dtype)
        size = int(np.prod(max_shape)) * self.dtype.itemsize
        self.num_bytes = 2 * len(self.aliases) * size
        self._now = {name: cuda.allocate(size) for name in self.aliases}
        self._next = {name: cuda.allocate(size) for name in self.aliases}
        self.shape: tuple[int, ...] = (*max_shape[:2], 0, *max_shape[3:])

    def places(self) -> Iterator[tuple[str, int, int]]:
        """(input, its address, its output's address)."""
        for name in self.aliases:
            yield name, self._now[name], self._next[name]

    def after_run(self, shape: tuple[int, ...]) -> None:
        """What was put out, of that shape, is the next run's input."""
        self.shape = shape
        self._now, self._next = self._next, self._now

    def get(self, name: str) -> NDArray[Any]:
        """Current value as an array."""
        return self._cuda.download(self._now[name], self.shape, self.dtype)

    def set(self, name: str, array: NDArray[Any]) -> None:
        """Replace a value; all must have the same shape."""
        array = np.ascontiguousarray(array, self.dtype)
        self.shape = array.shape
        if array.size:
            self._cuda.upload(array, self._now[name])
            self._cuda.synchronize()

    def release(self) -> None:
        """Free the buffers."""
        for address in (*self._now.values(), *self._next.values()):
            self._cuda.free(address)
