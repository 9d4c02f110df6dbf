"""Static int8: ranges measured on data, and the Q/DQ directory that comes of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny_checkpoints import PROMPT, QUESTIONS

from edge_atp.errors import ArtifactError, ConfigError
from edge_atp.evaluation.dataset_writer import DatasetWriter
from edge_atp.evaluation.labels import Example
from edge_atp.runtime.engine import Engine
from edge_atp.types import PatchGrid
from export import calibration, memory, recipe
from export.describe import describe
from export.settings import ExportSettings


@pytest.fixture
def settings(checkpoint: Path, text_tower: Path) -> ExportSettings:
    return ExportSettings(
        checkpoint,
        text_tower=str(text_tower),
        prompt=PROMPT,
        max_text_tokens=64,
        max_kv=96,
        precision="int8",
        dialect="prim18",
        compare=False,
    )


def labelled(folder: Path, images: int, brightness: int) -> Path:
    writer = DatasetWriter(folder, "val", 0, PatchGrid(4, 4), {"what": "exact"})
    rng = np.random.default_rng(0)
    for number in range(images):
        picture = rng.integers(0, brightness, (28, 28, 3), np.uint8)
        writer.add(f"{number}", picture, [Example(number + 1, "", QUESTIONS[0], "box", "what")])
    writer.finish()
    return folder


def ranges_of(settings: ExportSettings) -> dict[str, dict[str, np.ndarray]]:
    sources = recipe.read_sources(settings)
    return calibration.calibrate(sources, describe(sources), lambda step: None)


def test_every_linear_layer_of_the_graphs_has_its_range(settings: ExportSettings) -> None:
    ranges = ranges_of(settings)
    assert set(ranges) == {"vision", "project", "decoder"}
    # Two vision layers are consumed and one more makes the joint-space patches; four linear
    # layers each. The decoder's three layers have four each, too.
    assert len(ranges["vision"]) == 12
    assert len(ranges["decoder"]) == 12
    assert ranges["decoder"]["llm.layers.0.mlp.down_proj"].shape == (96,)
    assert all((peak >= 0).all() and peak.max() > 0 for peak in ranges["vision"].values())


def test_pictures_of_the_calibration_set_widen_the_ranges(
    settings: ExportSettings, tmp_path: Path
) -> None:
    plain = ranges_of(settings)["vision"]["vision.encoder.layers.0.mlp.fc1"]
    given = dataclasses.replace(
        settings, calibration_set=str(labelled(tmp_path / "labels", 3, 255))
    )
    wider = ranges_of(given)["vision"]["vision.encoder.layers.0.mlp.fc1"]
    assert (wider >= plain).all()
    assert (wider > plain).any()


def test_one_picture_is_no_calibration_set(settings: ExportSettings, tmp_path: Path) -> None:
    one = labelled(tmp_path / "labels", 1, 255)
    with pytest.raises(ConfigError, match="holds 1 pictures"):
        ranges_of(dataclasses.replace(settings, calibration_set=str(one)))


def test_model_that_does_not_fit_is_said_before(
    settings: ExportSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "memory_bytes", lambda: (1000, 1000))
    with pytest.raises(ArtifactError, match=r"calibration runs the model in float32.*memory"):
        ranges_of(settings)


def test_quantised_directory_answers_like_the_original(
    settings: ExportSettings, tmp_path: Path, pixels: np.ndarray
) -> None:
    directories = [
        recipe.export_model(
            dataclasses.replace(settings, precision=precision, dialect="prim17"),
            tmp_path / precision,
            progress=lambda step: None,
        )
        for precision in ("int8", "fp32")
    ]
    spec = directories[0].manifest.precision
    assert spec.compute == "int8"
    assert spec.quantisation["calibration"] == "synthetic pictures"
    model = onnx.load(str(directories[0].path / "decoder.onnx"))
    onnx.checker.check_model(model, full_check=True)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("QuantizeLinear") == 12
    assert operators.count("DequantizeLinear") == 24
    logits = []
    for directory in directories:
        engine = Engine.load(directory, "ort-cpu")
        vision = engine.encode_image(pixels)
        tokens = engine.project(vision.patch_features, np.arange(16))
        prompt = engine.embed_prompt("what is on the left?", [tokens])
        logits.append(engine.last_logits(prompt.inputs_embeds))
        engine.close()
    assert np.corrcoef(*logits)[0, 1] > 0.97
    assert np.abs(logits[0] - logits[1]).max() > 1e-3
