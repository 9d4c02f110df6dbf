"""Decode steps as CUDA graphs: one launch in place of one per kernel.

A step is captured when its profile, shapes and addresses are those of the step before, and
replayed as long as they stay. TensorRT writes its own work into the stream that is captured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

from edge_atp.errors import InferenceError
from edge_atp.runtime.cuda_memory import Cuda

_log = logging.getLogger(__name__)
# Another prompt length moves the input buffers at most a few times; old graphs are dropped.
_MAX_GRAPHS = 4


class Replay:
    """Captured runs of one session, by what they depend on."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._graphs: dict[Hashable, Any] = {}
        self._before: Hashable = None
        self.problem = ""

    def run(self, key: Hashable, enqueue: Callable[[], None]) -> None:
        """Launch the graph captured under ``key``, or ``enqueue`` and capture a repetition."""
        if key in self._graphs:
            self._cuda.launch(self._graphs[key])
            return
        enqueue()
        repeated, self._before = key == self._before, key
        if repeated and not self.problem:
            self._capture(key, enqueue)

    def release(self) -> None:
        """Destroy all graphs."""
        for graph in self._graphs.values():
            self._cuda.release_graph(graph)
        self._graphs.clear()
        self._before = None

    def _capture(self, key: Hashable, enqueue: Callable[[], None]) -> None:
        if len(self._graphs) >= _MAX_GRAPHS:
            self.release()
        try:
            # Recorded, not run: the step itself has just been enqueued.
            self._cuda.begin_capture()
            try:
                enqueue()
            finally:
                graph = self._cuda.end_capture()
        except InferenceError as error:
            self.problem = str(error)
            _log.warning("decode steps run without a CUDA graph: %s", error)
            return
        self._graphs[key] = graph
