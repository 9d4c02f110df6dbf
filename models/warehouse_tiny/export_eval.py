"""Write a labelled data set for ``edge-atp evaluate``: images, questions, answers, target patches.

Every question carries two variants with the same answer: ``paraphrase`` (a wording that training
never saw) and ``distractor`` (the question beside an unrelated sentence that training never saw).
Images are drawn as a camera delivers them, 640 x 480, unless ``--size 224`` asks for the model's
square. The scenes of seed S are S, S + 1, ... of the split.
Run: ``python -m models.warehouse_tiny.export_eval --split test --scenes 1000 --out DIR``.
"""

from __future__ import annotations

import argparse
import atexit
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from rich.progress import track

from edge_atp.evaluation.dataset_writer import DatasetWriter
from edge_atp.evaluation.labels import Example
from edge_atp.types import PatchGrid
from models.warehouse_tiny import vocabulary as v
from models.warehouse_tiny import wordings
from models.warehouse_tiny.coverage import patch_coverage
from models.warehouse_tiny.facts import FAMILIES, Fact, SceneView
from models.warehouse_tiny.questions import Question, draw_fact, make_question, word
from models.warehouse_tiny.render import SceneRenderer
from models.warehouse_tiny.scene import sample_scene, scene_rng

LONG_ANSWER_FAMILIES = ("caption",)
# The coverage of a patch is measured on this many segmentation pixels a side.
_SEGMENTATION_SIDE = 224
# Random streams of a scene: 0 to 9 belong to the generator and to training.
_FACT_STREAM, _VARIANT_STREAM = 21, 22


@dataclass(frozen=True)
class Job:
    """One scene: its split and seed, image size and questions per family."""

    split: str
    seed: int
    width: int
    height: int
    per_family: int


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", choices=[s for s in v.SPLITS if s != "train"], required=True)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first scene")
    parser.add_argument("--scenes", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-family", type=int, default=1, help="questions a scene and family")
    parser.add_argument(
        "--size", choices=("640x480", "224"), default="640x480", help="image size in pixels"
    )
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    width, height = (640, 480) if arguments.size == "640x480" else (v.IMAGE_SIZE, v.IMAGE_SIZE)
    jobs = [
        Job(arguments.split, arguments.seed + i, width, height, arguments.per_family)
        for i in range(arguments.scenes)
    ]
    path = write_dataset(arguments.out, jobs, arguments.processes)
    print(path)


def write_dataset(path: Path, jobs: list[Job], processes: int = 1) -> Path:
    """Render the jobs and write the data set; returns its folder.

    Raises:
        DatasetError: the folder already holds a data set.
        RendererUnavailableError: MuJoCo or its GL library is missing.
    """
    families = {f: "token_f1" if f in LONG_ANSWER_FAMILIES else "exact" for f in FAMILIES}
    grid = PatchGrid(v.GRID, v.GRID)
    writer = DatasetWriter(path, jobs[0].split, jobs[0].seed, grid, families)
    for job, image, examples in track(
        _run(jobs, processes), total=len(jobs), description=f"{jobs[0].split}: scenes"
    ):
        writer.add(f"{job.split}_{job.seed:06d}", image, examples)
    return writer.finish()


def make_scene(job: Job) -> tuple[Job, np.ndarray, list[Example]]:
    """One scene's picture (height, width, 3) uint8 and its questions; the same on every call."""
    state = sample_scene(job.split, job.seed)
    scale = _SEGMENTATION_SIDE / job.height
    frame = _renderer().render(state, job.width, job.height, segmentation_scale=scale)
    coverage = patch_coverage(_central_square(frame.entities))
    rng = scene_rng(job.split, job.seed, stream=_FACT_STREAM)
    rewording = scene_rng(job.split, job.seed, stream=_VARIANT_STREAM)
    view = SceneView(state, coverage)
    examples = []
    for family in FAMILIES:
        for _ in range(job.per_family):
            fact = draw_fact(view, rng, family)
            if fact is None:
                continue
            text = word(fact, rng, held_out=job.split == "paraphrase")
            question = make_question(fact, text, coverage)
            examples.append(_example(question, fact, rewording))
    return job, frame.image, examples


def _example(question: Question, fact: Fact, rng: np.random.Generator) -> Example:
    distractors = wordings.HELD_OUT_DISTRACTORS
    distractor = distractors[rng.integers(len(distractors))]
    before = rng.random() < 0.5
    disturbed = f"{distractor} {question.text}" if before else f"{question.text} {distractor}"
    return Example(
        line=0,
        image="",
        question=question.text,
        answer=question.answer,
        family=question.family,
        target=question.patch_mask if question.patch_mask.any() else None,
        variants={
            "paraphrase": (word(fact, rng, held_out=True),),
            "distractor": (disturbed,),
        },
    )


def _central_square(entities: np.ndarray) -> np.ndarray:
    """The segmentation's central square, an even crop so that patches divide it."""
    height, width = entities.shape
    left = (width - height) // 2
    return entities[:, left : left + height]


def _run(jobs: list[Job], processes: int) -> Iterator[tuple[Job, np.ndarray, list[Example]]]:
    if processes <= 1:
        yield from map(make_scene, jobs)
        return
    # spawn: a GL context cannot be shared with a forked process.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(make_scene, jobs, chunksize=8)


@lru_cache(maxsize=1)
def _renderer() -> SceneRenderer:
    """One renderer a process, closed before the GL library is torn down."""
    renderer = SceneRenderer()
    atexit.register(renderer.close)
    return renderer


if __name__ == "__main__":
    main()
