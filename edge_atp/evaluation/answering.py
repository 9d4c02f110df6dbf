"""Ask one image's questions of every arm; arms share the encodings of the image.

Latencies are sums of measured stages: preprocessing and encoding are timed once per image and way
of encoding it, text embedding once per question, and both are added to every arm that needs them,
as if each had been asked alone.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edge_atp import pruning
from edge_atp.config import PipelineConfig
from edge_atp.evaluation.answer_sets import AnswerSets
from edge_atp.evaluation.arms import DENSE, Arm
from edge_atp.evaluation.conditions import Condition
from edge_atp.evaluation.dataset import LabelledDataset
from edge_atp.evaluation.encodings import ImageEncodings
from edge_atp.evaluation.grounding import target_kept
from edge_atp.evaluation.labels import Example
from edge_atp.evaluation.records import ArmAnswer, FinishedTask, Record
from edge_atp.pipeline import Pipeline
from edge_atp.runtime.cut_encoder import split_method
from edge_atp.runtime.loading import load_engine
from edge_atp.types import Frame, Query


@dataclass(frozen=True)
class Task:
    """One image under conditions that share its encoding, asked of ``arms``.

    long_answers: also ask families that are scored by token F1; a description takes ten times the
        decoding of a short answer.
    """

    image: str
    conditions: tuple[Condition, ...]
    arms: tuple[Arm, ...]
    long_answers: bool = True

    @property
    def key(self) -> str:
        """Identifies the task within a run."""
        return f"{self.image} {'+'.join(condition.name for condition in self.conditions)}"


class Answerer:
    """A loaded model that answers a data set's questions.

    Args:
        dataset: an opened data set.
        config: model, backend, threads and the defaults of the pipeline.
    """

    def __init__(self, dataset: LabelledDataset, config: PipelineConfig) -> None:
        self._dataset = dataset
        self._config = config
        self.engine = load_engine(config.model, config.engine, num_threads=config.num_threads)
        self._directory = self.engine.directory
        self._examples = dict(dataset.by_image())
        self._choices = AnswerSets(dataset.examples, dataset.families, config.max_choices)

    def answer(self, task: Task) -> FinishedTask:
        """Answer every question about the task's image."""
        sources = {arm.relevance_source for arm in task.arms}
        pipelines = {source: self._pipeline(task.image, source) for source in sources}
        pipeline = next(iter(pipelines.values()))
        image = self._dataset.read_image(task.image)
        image = task.conditions[0].image(image, self._config.seed, task.image)
        encodings = ImageEncodings(pipeline, Frame(image))
        records = [
            Record(
                example.line,
                condition.name,
                self._ask(example, question, task.arms, pipelines, encodings),
            )
            for condition in task.conditions
            for example in self._asked(task)
            if (question := condition.question(example)) is not None
        ]
        return FinishedTask(task.key, tuple(records))

    def close(self) -> None:
        """Release the model."""
        self.engine.close()

    def _asked(self, task: Task) -> list[Example]:
        families = self._dataset.families
        return [
            example
            for example in self._examples[task.image]
            if task.long_answers or families[example.family] == "exact"
        ]

    def _pipeline(self, image: str, relevance_source: str) -> Pipeline:
        """The engine with this image's seed: one fixed seed would give every image the same
        random patches, which is no random baseline."""
        directory = self._directory
        if relevance_source:
            selection = replace(directory.manifest.selection, relevance_source=relevance_source)
            directory = replace(
                directory, manifest=replace(directory.manifest, selection=selection)
            )
        seed = zlib.crc32(f"{self._config.seed} {image}".encode()) >> 1
        return Pipeline(self.engine, directory, replace(self._config, seed=seed))

    def _ask(
        self,
        example: Example,
        question: str,
        arms: Sequence[Arm],
        pipelines: dict[str, Pipeline],
        encodings: ImageEncodings,
    ) -> dict[str, ArmAnswer]:
        text_s = self._warm_text(question, arms)
        answers = {}
        for arm in arms:
            choices = self._choices.of(example) if arm.closed else ()
            query = Query(question, choices=choices, prune=arm.prune_spec())
            encoding, encode_s = encodings.wanted_by(query)
            answer = pipelines[arm.relevance_source].answer(query, [encoding])
            times = answer.times
            kept = np.asarray(answer.masks[0].kept)
            answers[arm.name] = ArmAnswer(
                answer=answer.text,
                confidence=_rounded(answer.confidence),
                num_kept=answer.tokens.visual_kept,
                target_kept=(
                    None if example.target is None else _rounded(target_kept(kept, example.target))
                ),
                latency_s=round(
                    encode_s
                    + (text_s if _reads_text(arm) else 0.0)
                    + times.prune
                    + times.prefill
                    + times.decode,
                    6,
                ),
            )
        return answers

    def _warm_text(self, question: str, arms: Sequence[Arm]) -> float:
        """Embed the question once; seconds. The engine remembers it for the arms that follow."""
        if not any(_reads_text(arm) for arm in arms):
            return 0.0
        start_s = time.perf_counter()
        self.engine.encode_text(question)
        return time.perf_counter() - start_s


def _reads_text(arm: Arm) -> bool:
    return arm.method != DENSE and "text_embed" in pruning.load(split_method(arm.method)[1]).needs


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 6)
