"""Task accuracy of a model directory on a labelled data set: what decides about quantisation.

The data set has the format of ``edge_atp.evaluation.dataset``; families with short exact answers
count. The quantised directory is compared with a float32 export of the same checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edge_atp.config import PipelineConfig
from edge_atp.errors import ConfigError
from edge_atp.evaluation.answers import exact_match
from edge_atp.evaluation.dataset import LabelledDataset
from edge_atp.pipeline import Pipeline
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.types import Frame, Policy, PruneSpec, Query

_BACKEND = "ort-cpu"
_COUNTED = "exact"


def read_labels(path: Path) -> LabelledDataset:
    """A labelled data set with questions that have one exact answer.

    Raises:
        DatasetError: it cannot be read.
        ConfigError: it has no such question.
    """
    dataset = LabelledDataset.open(path)
    if not any(dataset.families[e.family] == _COUNTED for _, es in dataset.by_image() for e in es):
        raise ConfigError(
            f"accuracy_set {path}: no question of a family that is answered exactly; families are"
            f" {dict(dataset.families)}, and those with {_COUNTED!r} count"
        )
    return dataset


def measure_accuracy(folder: Path, dataset: LabelledDataset, keep_ratio: float) -> float:
    """Share of exactly right answers, [0, 1].

    Args:
        folder: model directory; the export may still be working on it.
        keep_ratio: share of visual tokens kept; 1 asks without pruning.
    """
    directory = ModelDirectory.open(folder, unfinished=True)
    config = PipelineConfig(model=str(folder), engine=_BACKEND)
    pipeline = Pipeline(Engine.load(directory, _BACKEND), directory, config)
    prune = PruneSpec(Policy.KEEP_RATIO, keep_ratio=keep_ratio)
    scores = []
    try:
        for image, examples in dataset.by_image():
            encoding = pipeline.encode(Frame(dataset.read_image(image)))
            for example in examples:
                if dataset.families[example.family] == _COUNTED:
                    answer = pipeline.answer(Query(example.question, prune=prune), [encoding])
                    scores.append(exact_match(answer.text, example.answer))
    finally:
        pipeline.close()
    return sum(scores) / len(scores)


def accuracy_drop(
    quantised: Path,
    reference: Path,
    dataset: Path,
    keep_ratio: float,
    progress: Callable[[str], None],
) -> dict[str, float]:
    """Accuracy of both directories dense and at ``keep_ratio``, and the larger loss.

    Returns:
        By name, in [0, 1]; ``accuracy_drop`` is what the gate compares.
    """
    labelled = read_labels(dataset)
    result: dict[str, float] = {}
    drops = []
    for name, ratio in (("dense", 1.0), ("pruned", keep_ratio)):
        progress(f"task accuracy, {name}")
        expected = measure_accuracy(reference, labelled, ratio)
        found = measure_accuracy(quantised, labelled, ratio)
        result[f"accuracy_{name}_fp32"] = expected
        result[f"accuracy_{name}"] = found
        drops.append(expected - found)
    return {**result, "accuracy_drop": max(drops)}
