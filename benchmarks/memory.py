"""Does memory stay flat over many answers? Resident set, what it is made of, and its slope.

Every kind of answer takes its turn: short, captions and from a closed set, dense and pruned, new
and unchanged frames, several images, conversations that are asked on and forgotten, canceled and
expired ones, refused ones, and ever new texts. The load repeats itself every 240 answers and is
looked at in the same phase of it. The slope is a least-squares line through the second half, when
every bounded memory is full.

Run: ``python -m benchmarks.memory [--answers 10000] [--trim-every N] [--python] [--json OUT]``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.process_memory import Reading, read, trim
from edge_atp.config import PipelineConfig
from edge_atp.errors import InvalidQueryError
from edge_atp.pipeline import Pipeline
from edge_atp.types import Answer, Frame, Policy, PruneSpec, Query

QUESTIONS = ("where is the red box?", "what is the gripper holding?", "is there a blue drum?")
KINDS = (
    "short", "dense", "choices", "two images", "new text",
    "turn", "caption", "canceled", "expired", "bad",
)  # fmt: skip
_TURNS = 12
# Of kinds (10) x turns (12), and four frames of 20 answers each.
PERIOD = 240
_FIELDS = [field.name for field in fields(Reading) if field.name != "answers"]


class Load:
    """Asks one question of the next kind at each call."""

    def __init__(self, pipeline: Pipeline, seed: int = 0) -> None:
        self.pipeline = pipeline
        rng = np.random.default_rng(seed)
        self._images = [rng.integers(0, 256, (480, 640, 3), dtype=np.uint8) for _ in range(4)]
        self._count = itertools.count()
        self.statuses: Counter[str] = Counter()

    def __call__(self) -> None:
        """One answer, or one refusal."""
        number = next(self._count)
        kind = KINDS[number % len(KINDS)]
        try:
            self.statuses[self._ask(kind, number).status.name] += 1
        except InvalidQueryError:
            self.statuses["REFUSED"] += 1

    def _ask(self, kind: str, number: int) -> Answer:
        answer, text = self.pipeline.answer, QUESTIONS[number % len(QUESTIONS)]
        # Several questions in a row are about the same frame: its encoding is reused.
        frame = Frame(self._images[number // 20 % 4], stamp_ns=number)
        if kind == "dense":
            return answer(Query(text, prune=PruneSpec(Policy.OFF)), [frame])
        if kind == "choices":
            return answer(Query(text, choices=("yes", "no", f"box {number:06d}")), [frame])
        if kind == "two images":
            return answer(Query(text), [frame, Frame(self._images[0], camera="left")])
        if kind == "new text":
            # As long each time: the memory for it is then the same.
            return answer(Query(f"is box {number:06d} on the shelf?"), [frame])
        if kind == "turn":
            talk, turn = divmod(number // len(KINDS), _TURNS)
            return answer(Query(text, conversation_id=f"talk {talk}"), [] if turn else [frame])
        if kind == "caption":
            return answer(Query("describe the scene.", max_new_tokens=64), [frame])
        if kind == "canceled":
            stops = iter((False,) * (number // len(KINDS) % 4))
            return answer(Query(text), [frame], should_stop=lambda: next(stops, True))
        if kind == "expired":
            # Past at once, in the midst of the work, or (mostly) in time; the first is the first.
            left_s = number // len(KINDS) % 3 * 0.02
            return answer(Query(text), [frame], deadline_s=time.perf_counter() + left_s)
        if kind == "bad":
            return answer(Query(text, choices=("only one",)), [frame])
        return answer(Query(text), [frame])


def measure(load: Load, answers: int, trim_every: int = 0, watch: bool = False) -> list[Reading]:
    """A reading after every period; with ``watch`` prints which Python lines grew at the end."""
    readings: list[Reading] = []
    periods = max(2, answers // PERIOD)
    before = None
    for number in range(1, periods + 1):
        for _ in range(PERIOD):
            load()
        if trim_every and number % max(1, trim_every // PERIOD) == 0:
            trim()
        readings.append(read(number * PERIOD))
        if watch and number == periods // 2:
            before = tracemalloc.take_snapshot()
    if before:
        grown = tracemalloc.take_snapshot().compare_to(before, "lineno")
        for entry in sorted(grown, key=lambda entry: -entry.size_diff)[:8]:
            print(entry)
    return readings


def slopes(readings: Sequence[Reading]) -> dict[str, float]:
    """Growth per 10,000 answers of every figure over the second half of the readings."""
    half = readings[len(readings) // 2 :]
    answers = [reading.answers for reading in half]
    return {
        name: float(np.polyfit(answers, [getattr(r, name) for r in half], 1)[0] * 10_000)
        for name in _FIELDS
    }


def show(readings: Sequence[Reading], growth: dict[str, float], rows: int = 10) -> None:
    """Readings at even distances, then the slopes."""
    table = Table("answers", *(name.replace("_", " ") for name in _FIELDS))
    for reading in readings[:: max(1, len(readings) // rows)]:
        table.add_row(str(reading.answers), *(_number(getattr(reading, n)) for n in _FIELDS))
    table.add_section()
    table.add_row("per 10,000", *(f"{growth[name]:+.2f}" for name in _FIELDS))
    Console(width=130).print(table)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Load, measure, trim, print; returns the record."""
    if options.python:
        tracemalloc.start()
    config = PipelineConfig(
        model=options.model, num_threads=options.threads, frame_tolerance=0.0, max_new_tokens=6
    )
    load = Load(Pipeline.load(config))
    start = time.process_time()
    readings = measure(load, options.answers, options.trim_every, options.python)
    cpu_ms = (time.process_time() - start) / readings[-1].answers * 1e3
    growth = slopes(readings)
    show(readings, growth)
    before, _, after = read(), trim(), read()
    print(
        f"{cpu_ms:.2f} ms of CPU an answer; malloc_trim gives"
        f" {before.resident_mb - after.resident_mb:.1f} MB back; {dict(load.statuses)};"
        f" {len(load.pipeline.conversations)} conversations hold"
        f" {load.pipeline.conversations.num_bytes / 1e6:.1f} MB"
    )
    return {
        "cpu_ms": cpu_ms,
        "per_10000": growth,
        "after_trim": asdict(after),
        "statuses": dict(load.statuses),
        "readings": [asdict(reading) for reading in readings],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--model", default="warehouse_tiny")
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trim-every", type=int, default=0, help="answers between malloc_trim")
    parser.add_argument("--python", action="store_true", help="trace Python's memory (slow)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    record = run(options)
    if options.json:
        options.json.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
