"""What is running here, as calibrations name it."""

from __future__ import annotations

from edge_atp.cost_model import Identity
from edge_atp.machine import device_name
from edge_atp.runtime.manifest import FILE_NAME
from edge_atp.runtime.model_dir import ModelDirectory, file_sha256


def running(directory: ModelDirectory, backend: str, num_threads: int = 0) -> Identity:
    """Model, backend and device of a loaded engine.

    Args:
        backend: the resolved one, such as "ort-cpu".
        num_threads: as configured, 0 where the backend decides.
    """
    return Identity(
        model_id=directory.manifest.model_id,
        # The manifest holds the hash of every other file.
        model_sha256=file_sha256(directory.path / FILE_NAME),
        backend=backend,
        device=device_name(backend),
        num_threads=num_threads,
    )
