"""From the name of a model to an engine that runs it: find, check, start."""

from __future__ import annotations

from edge_atp.runtime.engine import Engine
from edge_atp.runtime.find_model import find_model
from edge_atp.runtime.model_dir import ModelDirectory


def load_engine(model: str, backend: str, *, num_threads: int = 0) -> Engine:
    """Open a model directory (every hash checked) and start its backend.

    The engine's ``backend_reason`` also says which export of a shipped model was taken, and why.

    Args:
        model: as ``find_model`` takes it.
        backend, num_threads: as ``Engine.load`` takes them.
    Raises:
        ArtifactError, BackendUnavailableError, ConfigError.
    """
    found = find_model(model, backend)
    engine = Engine.load(ModelDirectory.open(found.path), backend, num_threads=num_threads)
    if found.reason:
        engine.backend_reason += f"; {found.reason}"
    return engine
