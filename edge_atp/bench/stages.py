"""A pipeline that tells how long each of its stages took, in wall and process CPU time.

It is the pipeline itself that runs: the engine's calls are timed on the way through. ``prune`` and
``prefill`` of an answer's own latencies are split here into text encoder, selection, projection and
prefill proper.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from edge_atp.bench.measure import Run
from edge_atp.bench.memory import high_water_bytes, restart_high_water
from edge_atp.bench.questions import Question
from edge_atp.config import PipelineConfig
from edge_atp.evaluation.arms import Arm
from edge_atp.pipeline import Pipeline
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.types import Frame, Query

STAGES = ("preprocess", "vision", "text", "select", "project", "prefill", "decode", "other")

# Engine calls that are a stage; embedding the prompt belongs to prefill.
_CALLS = {
    "encode_image": "vision",
    "encode_text": "text",
    "project": "project",
    "embed_prompt": "prefill",
}


class Stopwatch:
    """Time per stage; a stage inside another one is not counted twice."""

    def __init__(self) -> None:
        self.wall_ms: dict[str, float] = {}
        self.cpu_ms: dict[str, float] = {}
        self._open: list[str] = []
        self._last = _clocks()

    def restart(self) -> tuple[float, float]:
        """Forget everything measured; returns the clocks from which on it measures."""
        self.wall_ms, self.cpu_ms, self._open = {}, {}, []
        self._last = _clocks()
        return self._last

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Book the time inside under ``name``."""
        # A method that compares projected tokens projects them all: that is its selection's cost.
        inner = "select" if name == "project" and "select" in self._open else name
        self.book()
        self._open.append(inner)
        try:
            yield
        finally:
            self.book()
            self._open.pop()

    def book(self) -> tuple[float, float]:
        """Book the time since the last change of stage; returns the clocks up to which."""
        now = _clocks()
        stage = self._open[-1] if self._open else "other"
        self.wall_ms[stage] = self.wall_ms.get(stage, 0.0) + now[0] - self._last[0]
        self.cpu_ms[stage] = self.cpu_ms.get(stage, 0.0) + now[1] - self._last[1]
        self._last = now
        return now

    def claim(self, name: str, lap_ms: float) -> None:
        """Move to a stage what the pipeline booked for it and no timed call did: methods that cut
        inside the encoder run its graphs themselves."""
        unclaimed = self.wall_ms.get("other", 0.0)
        moved = min(lap_ms - self.wall_ms.get(name, 0.0), unclaimed)
        if moved <= 0.0:
            return
        cpu = self.cpu_ms.get("other", 0.0) * moved / unclaimed
        for clock, part in ((self.wall_ms, moved), (self.cpu_ms, cpu)):
            clock["other"] -= part
            clock[name] = clock.get(name, 0.0) + part

    def switch(self, name: str) -> None:
        """The stage that is open becomes another one from here on."""
        self.book()
        self._open[-1] = name


class _TimedEngine:
    """An engine whose calls are booked; everything else is the engine's own."""

    def __init__(self, engine: Engine, watch: Stopwatch) -> None:
        self._engine = engine
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._engine, name)
        return self._timed(_CALLS[name], value) if name in _CALLS else value

    def generate(self, *args: Any, on_prefill: Callable[[], None], **options: Any) -> Any:
        """Prefill until the first logits, decode from there on."""

        def now_decoding() -> None:
            on_prefill()
            self._watch.switch("decode")

        with self._watch.stage("prefill"):
            return self._engine.generate(*args, on_prefill=now_decoding, **options)

    def _timed(self, stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            with self._watch.stage(stage):
                return call(*args, **options)

        return run


class TimedPipeline(Pipeline):
    """The pipeline with a stopwatch on its stages."""

    def __init__(self, engine: Engine, directory: ModelDirectory, config: PipelineConfig) -> None:
        self.watch = Stopwatch()
        super().__init__(cast(Engine, _TimedEngine(engine, self.watch)), directory, config)
        # The encoder's, not the pipeline's own: it is the encoder that calls it.
        preprocess = self._encoder.preprocess

        def timed(image: Any) -> Any:
            with self.watch.stage("preprocess"):
                return preprocess(image)

        self._encoder.preprocess = timed

    def select(self, *args: Any, **options: Any) -> Any:
        """Score and choose, booked as a stage."""
        with self.watch.stage("select"):
            return super().select(*args, **options)


class EngineContender:
    """One method and budget on a model directory.

    Args:
        pipeline: shared by all contenders of one engine.
        frames: the pictures.
        tokens: longest answer per kind of question.
        standing: questions were asked before, so the text embedding is remembered.
    """

    def __init__(
        self,
        name: str,
        pipeline: TimedPipeline,
        arm: Arm,
        frames: list[Frame],
        tokens: dict[str, int],
        standing: bool = False,
    ) -> None:
        self.name = name
        self.arm = arm
        self._pipeline = pipeline
        self._frames = frames
        self._tokens = tokens
        self._standing = standing

    def answer(self, question: Question, picture: int) -> Run:
        """One answer through the whole pipeline."""
        query = Query(
            question.text,
            prune=self.arm.prune_spec(),
            max_new_tokens=self._tokens[question.kind],
        )
        return timed_answer(self._pipeline, query, self._frames[picture], forget=not self._standing)


def timed_answer(pipeline: TimedPipeline, query: Query, frame: Frame, *, forget: bool) -> Run:
    """Answer a question and say where the time went.

    Args:
        forget: the question's embedding is computed again.
    """
    watch = pipeline.watch
    if forget:
        pipeline.engine.forget_texts()
    measured = restart_high_water()
    # The watch's own readings: others beside them would differ where the process is interrupted.
    start = watch.restart()
    answer = pipeline.answer(query, [frame])
    end = watch.book()
    laps = answer.times
    watch.claim("preprocess", 1e3 * laps.preprocess)
    watch.claim("vision", 1e3 * laps.vision_encode)
    watch.claim("select", 1e3 * laps.prune - watch.wall_ms.get("text", 0.0))
    wall, cpu = end[0] - start[0], end[1] - start[1]
    return Run(
        wall_ms=wall,
        cpu_ms=cpu,
        token_ids=answer.token_ids,
        text=answer.text,
        compared_wall_ms=wall - watch.wall_ms.get("preprocess", 0.0),
        compared_cpu_ms=cpu - watch.cpu_ms.get("preprocess", 0.0),
        stages_ms={stage: watch.wall_ms.get(stage, 0.0) for stage in STAGES},
        stages_cpu_ms={stage: watch.cpu_ms.get(stage, 0.0) for stage in STAGES},
        visual_kept=answer.tokens.visual_kept,
        visual_total=answer.tokens.visual_total,
        text_tokens=answer.tokens.prompt_text,
        peak_bytes=high_water_bytes() if measured else 0,
        kv_bytes=answer.kv_bytes,
    )


def _clocks() -> tuple[float, float]:
    """Wall and process CPU time in milliseconds."""
    return 1e3 * time.perf_counter(), 1e3 * time.process_time()
