"""The accuracy gate: exact answers counted on a labelled data set, quantised against float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import PROMPT, QUESTIONS

from edge_atp.config import PipelineConfig
from edge_atp.errors import ArtifactError, EdgeAtpError
from edge_atp.evaluation.dataset import LabelledDataset
from edge_atp.evaluation.dataset_writer import DatasetWriter
from edge_atp.evaluation.labels import Example
from edge_atp.pipeline import Pipeline
from edge_atp.types import Frame, PatchGrid, Query
from export import accuracy, recipe
from export.gates import Measurements
from export.precision import get_precision
from export.settings import ExportSettings


def test_a_point_and_a_half_is_too_much() -> None:
    limits = get_precision("int8", "ort-gqa").limits
    fine, lost = Measurements(limits), Measurements(limits)
    fine.add("accuracy_drop", 0.009)
    fine.require()
    lost.add("accuracy_drop", 0.015)
    with pytest.raises(ArtifactError, match=r"accuracy_drop is 0.015, limit 0.01"):
        lost.require()


def test_not_a_number_fails_its_gate() -> None:
    measured = Measurements({"logits_max_abs": 1e-3})
    measured.add("logits_max_abs", 1e-6)
    measured.add("logits_max_abs", float("nan"))
    measured.add("logits_max_abs", 1e-6)
    with pytest.raises(ArtifactError, match="logits_max_abs is nan"):
        measured.require()


def labels(folder: Path, rule: str = "exact") -> str:
    writer = DatasetWriter(folder, "test", 0, PatchGrid(4, 4), {"what": rule})
    for number in range(2):
        image = np.random.default_rng(number).integers(0, 256, (28, 28, 3), np.uint8)
        example = Example(number, "", QUESTIONS[number], "nothing of the kind", "what")
        writer.add(f"image_{number}", image, [example])
    return str(writer.finish())


def test_a_quantised_export_is_compared_with_float32(
    checkpoint: Path, text_tower: Path, tmp_path: Path
) -> None:
    """From the settings to the manifest: both directories are asked before either is finished."""
    settings = ExportSettings(
        checkpoint, text_tower=str(text_tower), prompt=PROMPT, max_kv=128, max_text_tokens=64,
        precision="int8", accuracy_set=labels(tmp_path / "labels"), compare=False,
    )  # fmt: skip
    steps: list[str] = []
    found = recipe.export_model(settings, tmp_path / "model", progress=steps.append)
    gates = found.manifest.parity["gates"]
    assert gates["accuracy_drop"] == {"value": 0.0, "limit": 0.01}
    asked = {"accuracy_dense", "accuracy_dense_fp32", "accuracy_pruned", "accuracy_pruned_fp32"}
    assert {gates[name]["value"] for name in asked} == {0.0}
    assert {"task accuracy, dense", "task accuracy, pruned"} <= set(steps)


@pytest.mark.parametrize("rule", ["token_f1", ""])
def test_labels_that_cannot_be_counted_are_refused_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, rule: str
) -> None:
    given = labels(tmp_path / "labels", rule) if rule else str(tmp_path / "nowhere")
    settings = ExportSettings(checkpoint, prompt=PROMPT, precision="int8", accuracy_set=given)
    steps: list[str] = []
    with pytest.raises(EdgeAtpError, match="what.*token_f1" if rule else "nowhere"):
        recipe.export_model(settings, tmp_path / "model", progress=steps.append)
    assert steps == []


def test_accuracy_counts_the_models_own_answers_as_right(
    checkpoint: Path, text_tower: Path, tmp_path: Path
) -> None:
    """Half of the labels are what the model answers, half are not; captions do not count."""
    settings = ExportSettings(
        checkpoint, text_tower=str(text_tower), prompt=PROMPT, max_kv=128, max_text_tokens=64
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "run_gates", lambda *args: {"gates": {}})
        recipe.export_model(settings, tmp_path / "model", progress=lambda step: None)
    pipeline = Pipeline.load(PipelineConfig(model=str(tmp_path / "model"), engine="ort-cpu"))
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
    writer = DatasetWriter(
        tmp_path / "labels", "test", 0, PatchGrid(4, 4), {"what": "exact", "tell": "token_f1"}
    )
    examples = []
    for number, question in enumerate(QUESTIONS[:2]):
        own = pipeline.answer(Query(question), [Frame(image)]).text
        answer = own if number == 0 else "nothing of the kind"
        examples.append(Example(number + 1, "", question, answer, "what"))
    examples.append(Example(3, "", "tell me", "nothing of the kind", "tell"))
    writer.add("one", image, examples)
    writer.finish()
    dataset = LabelledDataset.open(tmp_path / "labels")
    keep = pipeline.manifest.selection.keep_ratio
    assert accuracy.measure_accuracy(tmp_path / "model", dataset, keep) == 0.5
