"""The pipeline behind the node: loaded, warmed up, and given other settings while it runs."""

from __future__ import annotations

import numpy as np

from edge_atp.config import PipelineConfig
from edge_atp.latency_budget import LatencyBudget
from edge_atp.pipeline import Pipeline
from edge_atp.types import Frame, Query

_WARM_UP_SIZE = (480, 640, 3)


def load(config: PipelineConfig) -> Pipeline:
    """Load the model and run it once.

    The first run of a backend allocates and tunes, and opens the graphs that only the default
    method needs; no question should pay for it. Those of other methods are opened in the inference
    thread when one is first asked for.

    Raises:
        EdgeAtpError: see ``Pipeline.load``.
    """
    pipeline = Pipeline.load(config)
    frame = Frame(np.full(_WARM_UP_SIZE, 128, dtype=np.uint8))
    pipeline.answer(Query("warm up", max_new_tokens=2), [frame])
    # It takes longer than all later runs, so nothing must be learned from it.
    pipeline.latency = LatencyBudget(pipeline.latency.cost, pipeline.latency.reason)
    return pipeline


def reconfigured(pipeline: Pipeline, config: PipelineConfig) -> Pipeline:
    """The same engine with other settings; conversations and what was learned of times stay.

    Raises:
        ConfigError: the settings do not fit the model or the device.
    """
    old = pipeline.latency
    # Looked for again only if it is now needed and was not there: the model's files, which it
    # reads, may be gone by now.
    needed = config.latency_budget_ms != pipeline.config.latency_budget_ms and old.cost is None
    latency = None if needed else old
    changed = Pipeline(pipeline.engine, pipeline.engine.directory, config, latency)
    changed.conversations = pipeline.conversations
    return changed
