"""The shipped model with a stopwatch on it, and a picture."""

from __future__ import annotations

import pytest

from edge_atp.bench.run import loaded
from edge_atp.config import PipelineConfig


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No calibration of whoever runs the tests is read or written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def timed_pipeline():
    with loaded(PipelineConfig(num_threads=1, reuse_prefix=False)) as pipeline:
        yield pipeline
