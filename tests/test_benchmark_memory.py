"""The memory benchmark asks every kind of question and draws its line right."""

import math
import mmap
from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.memory import KINDS, PERIOD, Load, measure, slopes
from benchmarks.process_memory import Reading, read
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
    assert statuses["CANCELED"] >= 1
    assert statuses["FINAL"] + statuses["TRUNCATED"] >= 12
    assert sum(statuses.values()) == 2 * len(KINDS)
    assert len(load.pipeline.conversations) == 1


def test_the_slope_is_that_of_the_second_half():
    reading = Reading(0, 50.0, 40.0, 30.0, 5.0, 1000, 100)
    filling = [replace(reading, answers=n, resident_mb=50.0 + n) for n in range(100)]
    flat = [replace(reading, answers=n, resident_mb=150.0 + 1e-4 * n) for n in range(100, 200)]
    growth = slopes(filling + flat)
    assert growth["resident_mb"] == pytest.approx(1.0)
    assert growth["heap_used_mb"] == pytest.approx(0.0)


def test_readings_are_taken_in_the_same_phase_of_the_load():
    asked = []
    readings = measure(lambda: asked.append(0), 3 * PERIOD + 17)
    assert [reading.answers for reading in readings] == [PERIOD, 2 * PERIOD, 3 * PERIOD]
    assert len(asked) == 3 * PERIOD
    # Kinds, turns of a conversation and frames are where they were.
    assert PERIOD % (len(KINDS) * 12) == PERIOD % (20 * 4) == 0


def test_a_reading_sees_what_is_held():
    read()  # collects what earlier tests left
    before = read()
    # Mapped on their own: malloc might serve them from pages that are resident already.
    pages = mmap.mmap(-1, 64 << 20)
    for start in range(0, len(pages), mmap.PAGESIZE):
        pages[start] = 1
    held = [bytearray(1 << 20) for _ in range(40)]
    after = read()
    assert after.resident_mb - before.resident_mb > 50
    if not math.isnan(before.heap_used_mb):
        assert after.heap_used_mb - before.heap_used_mb == pytest.approx(42, abs=5)
    assert len(held) == 40
    pages.close()
