"""The shipped model with a stopwatch on it, and a picture."""

from __future__ import annotations

import pytest

from edge_atp.bench.run import loaded
from edge_atp.config import PipelineConfig

# In float32 an answer has the same tokens with and without what is measured beside it.
FLOAT = PipelineConfig(model="warehouse_tiny:fp32", num_threads=1, reuse_prefix=False)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No calibration of whoever runs the tests is read or written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def timed_pipeline():
    with loaded(FLOAT) as pipeline:
        yield pipeline
