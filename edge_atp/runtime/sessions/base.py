"""What a backend offers: run a graph, and keep some of its tensors on the device between runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_atp.runtime.manifest import EngineSpec
from edge_atp.runtime.profiles import Profile

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class SessionOptions:
    """How to open a graph.

    num_threads: threads of one operator; 0 takes the physical cores this process may use.
    graph_sha256: hash of the graph file.
    engine, engine_path: what was built from the graph for this kind of device, where the
        directory has that.
    role: what the graph is for.
    dialect: operators it is written in.
    profiles: input shapes to build an engine for; empty where the graph cannot become one.
    compute: precision of the graph, as the manifest states it.
    """

    num_threads: int = 0
    graph_sha256: str = ""
    engine: EngineSpec | None = None
    engine_path: Path | None = None
    role: str = ""
    dialect: str = ""
    profiles: tuple[Profile, ...] = ()
    compute: str = ""


class StateBuffers(Protocol):
    """Named device buffers that a graph reads and writes in place (the KV cache)."""

    @property
    def num_bytes(self) -> int:
        """Size of all buffers together."""

    def read(self, name: str, length: int) -> NDArray[Any]:
        """A copy on the host of the first ``length`` entries along axis 2."""

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Replace the first entries along axis 2; those behind them are undefined."""


class Carry(Protocol):
    """Named device tensors that one run puts out and the next takes in."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of each of them now."""

    @property
    def num_bytes(self) -> int:
        """Memory they hold."""

    def get(self, name: str) -> NDArray[Any]:
        """The value of an input, copied to the host."""

    def set(self, name: str, array: NDArray[Any]) -> None:
        """Replace the value of an input."""


class Session(Protocol):
    """One graph, ready to run. Not thread-safe."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """Inputs of the graph, state included."""

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: tuple[str, ...] | None = None
    ) -> Arrays:
        """Run the graph; returns ``outputs`` by name, None for every output.

        The graph runs whole either way: outputs left out are not copied to the host.
        Raises:
            InferenceError: the backend failed; OutOfMemoryError where memory was the reason.
        """

    def allocate_state(
        self, aliases: Mapping[str, str], shape: tuple[int, ...], dtype: type[np.generic]
    ) -> StateBuffers:
        """Allocate one zeroed buffer per entry of ``aliases`` (input name -> output name)."""

    def run_in_place(
        self, inputs: Mapping[str, NDArray[Any]], state: Any, outputs: tuple[str, ...]
    ) -> Arrays:
        """Run with ``state`` bound to its inputs and outputs; returns ``outputs`` by name."""

    def allocate_carry(
        self, aliases: Mapping[str, str], max_shape: tuple[int, ...], dtype: type[np.generic]
    ) -> Carry:
        """Empty tensors (axis 2 of length 0) for ``aliases``, growing up to ``max_shape``."""

    def run_carrying(
        self, inputs: Mapping[str, NDArray[Any]], carry: Any, outputs: tuple[str, ...]
    ) -> Arrays:
        """Run with the carried values; their successors stay on the device.

        Returns:
            ``outputs`` by name.
        """

    def close(self) -> None:
        """Release the graph; the session cannot be used afterwards."""


@dataclass(frozen=True)
class Candidate:
    """One backend as seen on this machine: whether it can run, and why or why not."""

    name: str
    available: bool
    reason: str
