"""A whole export: gates, the directory it leaves, and what it leaves when it fails."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import PROMPT

from edge_atp.errors import ArtifactError, ConfigError
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.model_dir import ModelDirectory
from export import recipe
from export.checkpoint import TensorStore
from export.graph import GraphBuilder
from export.parity import run_gates
from export.settings import ExportSettings, read_settings


@pytest.fixture(scope="module")
def settings(checkpoint: Path, text_tower: Path) -> ExportSettings:
    return ExportSettings(
        checkpoint,
        text_tower=str(text_tower),
        prompt=PROMPT,
        max_text_tokens=64,
        max_kv=96,
        parity_new_tokens=6,
    )


@pytest.fixture(scope="module")
def exported(settings: ExportSettings, tmp_path_factory: pytest.TempPathFactory) -> ModelDirectory:
    out = tmp_path_factory.mktemp("exported") / "model"
    return recipe.export_model(settings, out, progress=lambda step: None)


def test_gates_cover_every_stage_and_pass(exported: ModelDirectory) -> None:
    parity = exported.manifest.parity
    assert parity["prompts"] >= 32
    for name in (
        "patch_features_relative_l2",
        "cls_attention_max_abs",
        "patch_embeds_relative_l2",
        "text_embed_relative_l2",
        "kept_jaccard_distance",
        "graph_kept_sets_differing",
        "logits_max_abs",
        "token_disagreement",
        "other_image_same_features",
        "other_prompt_same_logits",
    ):
        gate = parity["gates"][name]
        assert gate["value"] <= gate["limit"], name


def test_manifest_lists_every_file(exported: ModelDirectory) -> None:
    listed = {spec.path for spec in exported.manifest.files}
    present = {path.name for path in exported.path.iterdir()} - {"manifest.json"}
    assert listed == present
    assert exported.manifest.precision.weight_storage == "fp16"
    assert exported.manifest.llm.kv_heads == 2
    assert exported.manifest.prompt.template == PROMPT


def test_engine_answers_and_reads_the_image(exported: ModelDirectory, pixels: np.ndarray) -> None:
    engine = Engine.load(exported)
    answers = []
    for image in (pixels, -pixels):
        vision = engine.encode_image(image)
        tokens = engine.project(vision.patch_features, np.arange(16))
        prompt = engine.embed_prompt("what is on the left?", [tokens])
        answers.append(engine.last_logits(prompt.inputs_embeds))
    assert np.abs(answers[0] - answers[1]).max() > 1e-2
    engine.close()


def test_failed_gate_leaves_nothing(
    settings: ExportSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that differ from the checkpoint's by 2 % must be caught and not be published."""
    original = GraphBuilder.weight

    def disturbed(self: GraphBuilder, name: str, array: np.ndarray) -> str:
        factor = 1.02 if name.endswith("layers.1.mlp.down_proj.weight") else 1.0
        return original(self, name, (array * factor).astype(array.dtype))

    monkeypatch.setattr(GraphBuilder, "weight", disturbed)
    with pytest.raises(ArtifactError, match=r"parity failed.*logits_max_abs"):
        recipe.export_model(settings, tmp_path / "model", progress=lambda step: None)
    assert list(tmp_path.iterdir()) == []


def test_original_that_does_not_fit_into_memory(
    settings: ExportSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TensorStore, "num_bytes", lambda self, prefix="": 10**13)
    with pytest.raises(ArtifactError, match=r"takes about \d+ GB.*--no-compare"):
        run_gates(recipe.read_sources(settings), None, lambda step: None)


def test_export_without_comparing_says_so(settings: ExportSettings, tmp_path: Path) -> None:
    plain = dataclasses.replace(settings, compare=False)
    directory = recipe.export_model(plain, tmp_path / "model", progress=lambda step: None)
    assert directory.manifest.parity == {"compared": False, "gates": {}}


def test_model_too_large_to_run_here_gets_no_golden_answers(
    settings: ExportSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exporting streams; running would need all weights in float32."""
    monkeypatch.setattr(recipe, "fits", lambda num_bytes: False)
    monkeypatch.setattr(recipe.Engine, "load", lambda *args: pytest.fail("the model was loaded"))
    plain, steps = dataclasses.replace(settings, compare=False), []
    directory = recipe.export_model(plain, tmp_path / "model", progress=steps.append)
    assert not directory.has("golden")
    assert any(step.startswith("no golden answers: running") for step in steps)


def test_refuses_to_replace_what_is_no_export(settings: ExportSettings, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="no model directory"):
        recipe.export_model(settings, tmp_path, overwrite=True, progress=lambda step: None)
    assert (tmp_path / "holiday.jpg").exists()


def test_existing_export_needs_overwrite(
    settings: ExportSettings, exported: ModelDirectory
) -> None:
    with pytest.raises(ArtifactError, match="--overwrite"):
        recipe.export_model(settings, exported.path, progress=lambda step: None)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model_type", "idefics", "'idefics'.*supports llava"),
        ("text_config", {"model_type": "gpt2"}, "'gpt2'.*llama, mistral, qwen2"),
        ("vision_config", {"model_type": "siglip_vision_model"}, "clip_vision_model"),
    ],
)
def test_unsupported_architecture_names_what_is_supported(
    checkpoint: Path, tmp_path: Path, field: str, value: object, message: str
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(ArtifactError, match=message):
        recipe.read_sources(ExportSettings(folder, prompt=PROMPT))


def test_yaml_paths_are_relative_to_the_file(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "weights")
    card = tmp_path / "tiny.yaml"
    card.write_text("export:\n  checkpoint: weights\n  alpha: 0.25\n")
    settings = read_settings(str(card), {"alpha": None, "keep_ratio": 0.125})
    assert settings.checkpoint == tmp_path / "weights"
    assert (settings.alpha, settings.keep_ratio) == (0.25, 0.125)


def test_general_model_file_without_export_section(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "weights")
    card = tmp_path / "tiny.yaml"
    card.write_text(
        "name: tiny\nfamily: llava\ncheckpoint: weights\npruner: cls_topk\nkeep_ratio: 0.25\n"
        'prompt: "USER: <image>\\n{question} ASSISTANT:"\n'
    )
    settings = read_settings(str(card), {})
    assert (settings.model_id, settings.method, settings.keep_ratio) == ("tiny", "cls_topk", 0.25)
    assert settings.prompt == PROMPT


def test_family_that_cannot_be_exported(tmp_path: Path) -> None:
    card = tmp_path / "other.yaml"
    card.write_text("name: other\nfamily: qwen2_vl\ncheckpoint: owner/other\n")
    with pytest.raises(ConfigError, match=r"'qwen2_vl' cannot be exported.*llava"):
        read_settings(str(card), {})


def test_yaml_unknown_field_is_named(tmp_path: Path) -> None:
    card = tmp_path / "tiny.yaml"
    card.write_text("export:\n  checkpoint: weights\n  alfa: 0.25\n")
    with pytest.raises(ConfigError, match=r"unknown field alfa.*alpha"):
        read_settings(str(card), {})


def test_text_tower_of_another_vision_encoder(settings: ExportSettings, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    folder = shutil.copytree(settings.text_tower, tmp_path / "tower")
    weight = {"visual_projection.weight": torch.ones(24, 50)}
    save_file(weight, str(folder / "visual_projection.safetensors"))
    wrong = dataclasses.replace(settings, text_tower=str(folder))
    with pytest.raises(ArtifactError, match=r"takes 50 features.*has 48"):
        recipe.read_sources(wrong)


def test_quantised_export_records_its_distance(settings: ExportSettings, tmp_path: Path) -> None:
    quantised = dataclasses.replace(settings, precision="int8-weights", parity_new_tokens=2)
    directory = recipe.export_model(quantised, tmp_path / "model", progress=lambda step: None)
    assert directory.manifest.precision.compute == "int8-weights"
    gates = directory.manifest.parity["gates"]
    assert gates["kept_jaccard_distance"] == {"value": 0.0, "limit": 0.05}
    assert gates["logits_max_abs"]["value"] > 0
    assert gates["logits_max_abs"]["limit"] is None


def test_int8_vision_that_changes_the_selection_is_refused(
    settings: ExportSettings, tmp_path: Path
) -> None:
    """With 16 patches one swapped token is already more than the gate allows."""
    quantised = dataclasses.replace(settings, precision="int8", parity_new_tokens=2)
    with pytest.raises(ArtifactError, match=r"kept_jaccard_distance is 0\.\d+, limit 0.05"):
        recipe.export_model(quantised, tmp_path / "model", progress=lambda step: None)
    assert list(tmp_path.iterdir()) == []


def test_a_model_file_that_names_another_layer_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    card = tmp_path / "model.yaml"
    card.write_text(
        f"name: m\nvision_feature_layer: -1\nexport:\n  checkpoint: {checkpoint}\n"
        f"  prompt: '{PROMPT}'\n"
    )
    settings = read_settings(str(card), {})
    with pytest.raises(ConfigError, match=r"vision_feature_layer is -1 in the model file and -2"):
        recipe.read_sources(settings)
