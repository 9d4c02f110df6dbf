"""The memory benchmark asks every kind of question and draws its line right."""

from collections import Counter

import pytest

from benchmarks.memory import KINDS, Load, slope_mb
from edge_atp.config import PipelineConfig
from edge_atp.pipeline import Pipeline


def test_every_kind_of_answer_is_asked(pipeline):
    config = PipelineConfig(frame_tolerance=0.0, max_new_tokens=2)
    load = Load(Pipeline(pipeline.engine, pipeline.engine.directory, config))
    for _ in range(2 * len(KINDS)):
        load()
    statuses = Counter(load.statuses)
    assert statuses["REFUSED"] == 2
    assert statuses["EXPIRED"] >= 1
    assert statuses["CANCELED"] == 1
    assert statuses["FINAL"] + statuses["TRUNCATED"] >= 12
    assert sum(statuses.values()) == 2 * len(KINDS)
    assert len(load.pipeline.conversations) == 1


def test_the_slope_is_that_of_the_second_half():
    filling = [(n, 50.0 + n) for n in range(100)]
    flat = [(n, 150.0 + 1e-4 * n) for n in range(100, 200)]
    assert slope_mb(filling + flat) == pytest.approx(1.0)
