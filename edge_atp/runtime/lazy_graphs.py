"""Graphs of a model directory that few questions need: opened when first asked for, once."""

from __future__ import annotations

import threading
from collections.abc import Callable

from edge_atp.runtime.sessions.base import Session


class LazyGraphs:
    """Opens graphs by role and holds them; several threads may ask at the same time.

    Args:
        open_graph: opens a graph of the directory, under a lock; what it raises is raised to who
            asked, and the next one to ask tries again.
    """

    def __init__(self, open_graph: Callable[[str], Session]) -> None:
        self._open_graph = open_graph
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def open(self, role: str) -> bool:
        """Open a graph unless it is open; returns whether it was not."""
        with self._lock:
            return self._open(role)

    def get(self, role: str) -> Session:
        """The graph, opened now if it was not."""
        with self._lock:
            self._open(role)
            return self._sessions[role]

    def close(self) -> None:
        """Release the graphs; they are opened again when asked for."""
        with self._lock:
            sessions = list(self._sessions.values())
            self._sessions.clear()
        for session in sessions:
            session.close()

    def _open(self, role: str) -> bool:
        if role in self._sessions:
            return False
        self._sessions[role] = self._open_graph(role)
        return True
