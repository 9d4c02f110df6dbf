"""Does memory stay flat over many answers? Resident set against answers, and its slope.

Every kind of answer takes its turn: free and from a closed set, dense and pruned, new and
unchanged frames, several images, conversations that are asked on and forgotten, canceled and
expired ones, refused ones, and ever new texts. The slope is a least-squares line through the
second half, when every bounded memory is full.

Run: ``python -m benchmarks.memory [--answers 10000] [--json OUT]``.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil

from edge_atp.config import PipelineConfig
from edge_atp.errors import InvalidQueryError
from edge_atp.pipeline import Pipeline
from edge_atp.types import Answer, Frame, Policy, PruneSpec, Query

QUESTIONS = ("where is the red box?", "what is the gripper holding?", "is there a blue drum?")
KINDS = ("free", "dense", "choices", "two images", "new text", "turn", "canceled", "expired", "bad")


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
        # Two frames in a row are the same one: every second encoding is reused.
        frame = Frame(self._images[number // 18 % 4], stamp_ns=number)
        if kind == "dense":
            return answer(Query(text, prune=PruneSpec(Policy.OFF)), [frame])
        if kind == "choices":
            return answer(Query(text, choices=("yes", "no", f"box {number}")), [frame])
        if kind == "two images":
            return answer(Query(text), [frame, Frame(self._images[0], camera="left")])
        if kind == "new text":
            return answer(Query(f"is box {number} on the shelf?"), [frame])
        if kind == "turn":
            talk, turn = divmod(number // len(KINDS), 12)
            return answer(Query(text, conversation_id=f"talk {talk}"), [] if turn else [frame])
        if kind == "canceled":
            return answer(Query(text), [frame], should_stop=lambda: number % 2 == 0)
        if kind == "expired":
            # Past at once, in the midst of the work, or (mostly) in time; the first is the first.
            left_s = number // len(KINDS) % 3 * 0.02
            return answer(Query(text), [frame], deadline_s=time.perf_counter() + left_s)
        if kind == "bad":
            return answer(Query(text, choices=("only one",)), [frame])
        return answer(Query(text), [frame])


def measure(load: Load, answers: int, samples: int = 100) -> list[tuple[int, float]]:
    """(answers so far, resident MB) at even distances."""
    process, points = psutil.Process(), []
    for number in range(1, answers + 1):
        load()
        if number % max(1, answers // samples) == 0:
            gc.collect()
            points.append((number, process.memory_info().rss / 1e6))
    return points


def slope_mb(points: list[tuple[int, float]]) -> float:
    """MB per 10,000 answers over the second half of the points."""
    half = np.array(points[len(points) // 2 :])
    return float(np.polyfit(half[:, 0], half[:, 1], 1)[0] * 10_000)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--model", default="warehouse_tiny")
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = PipelineConfig(
        model=options.model, num_threads=options.threads, frame_tolerance=0.0, max_new_tokens=6
    )
    load = Load(Pipeline.load(config))
    points = measure(load, options.answers)
    record = {
        "answers": options.answers,
        "statuses": dict(load.statuses),
        "first_mb": points[0][1],
        "middle_mb": points[len(points) // 2][1],
        "last_mb": points[-1][1],
        "slope_mb_per_10000": slope_mb(points),
        "conversations": len(load.pipeline.conversations),
        "conversations_mb": load.pipeline.conversations.num_bytes / 1e6,
    }
    print(json.dumps(record, indent=1))
    if options.json:
        options.json.write_text(json.dumps({**record, "points": points}) + "\n")


if __name__ == "__main__":
    main()
