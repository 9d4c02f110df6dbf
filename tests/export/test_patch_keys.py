"""VisionZip and PruMerge on an exported directory: attention keys from the vision graph."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from tiny_checkpoints import PROMPT, llm_config, save_llava

from edge_atp.config import PipelineConfig
from edge_atp.errors import MissingSignalError
from edge_atp.hf import attach
from edge_atp.pipeline import Pipeline, runnable_methods
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.outputs import OPTIONAL_VISION_OUTPUTS
from edge_atp.signals import why_not_method
from edge_atp.types import Frame, Policy, PruneSpec, Query
from export import recipe
from export.settings import ExportSettings

QUESTION = "where is the red box on the shelf?"
METHODS = ("visionzip", "prumerge")
PATCHES, NEW_TOKENS = 16, 6


def export(checkpoint: Path, tower: str, out: Path, **changes: Any) -> Path:
    settings = ExportSettings(
        checkpoint, text_tower=tower, prompt=PROMPT, max_kv=96, parity_new_tokens=2, **changes
    )
    return recipe.export_model(settings, out, progress=lambda step: None).path


@pytest.fixture(scope="module")
def directory(checkpoint: Path, text_tower: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(checkpoint, str(text_tower), tmp_path_factory.mktemp("keys") / "model")


@pytest.fixture
def pipeline(directory: Path) -> Pipeline:
    return Pipeline.load(
        PipelineConfig(model=str(directory), engine="ort-cpu", frame_tolerance=0.0)
    )


def picture(seed: int) -> Frame:
    return Frame(np.random.default_rng(seed).integers(0, 255, (40, 56, 3)).astype(np.uint8))


def query(method: str, keep: int) -> Query:
    prune = PruneSpec(Policy.TOKEN_BUDGET, method=method, max_visual_tokens=keep)
    return Query(QUESTION, max_new_tokens=NEW_TOKENS, prune=prune)


def test_the_parity_gates_cover_the_keys(pipeline: Pipeline) -> None:
    gates = pipeline.manifest.parity["gates"]
    for name in ("patch_keys", "last_patch_keys"):
        assert 0.0 <= gates[f"{name}_relative_l2"]["value"] <= 1e-4
        assert gates[f"{name}_relative_l2"]["limit"] == 1e-4
    assert gates["last_cls_attention_max_abs"]["limit"] == 5e-6


@pytest.mark.parametrize("keep", [3, 9])
@pytest.mark.parametrize("method", METHODS)
def test_same_tokens_as_the_original_model(
    checkpoint: Path, pipeline: Pipeline, method: str, keep: int
) -> None:
    frame = picture(keep)
    answer = pipeline.answer(query(method, keep), [frame])

    model = transformers.LlavaForConditionalGeneration.from_pretrained(
        str(checkpoint), dtype=torch.float32
    ).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(checkpoint / "tokenizer.json")
    )
    handle = attach(model, tokenizer, method, keep)
    tokens = pipeline.engine.prompt_tokens(QUESTION, 1)
    ids = np.repeat(tokens.ids, np.where(tokens.is_image, PATCHES, 1))[None]
    with torch.inference_mode():
        output = model.generate(
            input_ids=torch.from_numpy(ids),
            pixel_values=torch.from_numpy(pipeline.preprocess(frame.image)[0]),
            attention_mask=torch.ones(ids.shape, dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
    theirs = handle.last_selections[0][0]

    encoding = pipeline.encode(frame)
    budget = pipeline._budgets(query(method, keep), 1)[0]
    ours = pipeline.select(encoding, QUESTION, budget)
    assert ours.kept_indices.tolist() == theirs.kept_indices.tolist()
    np.testing.assert_allclose(ours.merged, theirs.merged.numpy(), atol=2e-4)
    assert np.flatnonzero(answer.masks[0].kept).tolist() == theirs.kept_indices.tolist()
    answered = [t for t in output[0, ids.shape[1] :].tolist() if t != 3]
    assert list(answer.token_ids) == answered


def test_keys_are_fetched_for_the_methods_that_read_them_alone(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    encode = Engine.encode_image

    def spy(self: Engine, pixels: np.ndarray, optional: tuple[str, ...] = ()) -> object:
        asked.append(set(optional))
        return encode(self, pixels, optional)

    monkeypatch.setattr(Engine, "encode_image", spy)
    frame = picture(0)
    plain = pipeline.answer(query("atp", 5), [frame])
    pipeline.answer(query("cls_topk", 5), [frame])  # the frame is remembered
    zipped = pipeline.answer(query("visionzip", 5), [frame])  # without its keys
    pipeline.answer(query("visionzip", 5), [frame])
    shared = pipeline.encode(picture(1))  # for any method
    pipeline.answer(query("prumerge", 5), [shared])
    assert asked == [set(), {"patch_keys"}, set(OPTIONAL_VISION_OUTPUTS)]
    assert plain.tokens.visual_kept == zipped.tokens.visual_kept == 5


def test_an_encoding_without_keys_is_made_again(pipeline: Pipeline) -> None:
    bare = pipeline.encode(picture(2), optional=())
    assert bare.vision.patch_keys is None
    answer = pipeline.answer(query("visionzip", 5), [bare])
    whole = pipeline.answer(query("visionzip", 5), [picture(2)])
    assert answer.token_ids == whole.token_ids


def test_a_directory_of_an_earlier_version_says_what_to_do(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = pipeline.manifest
    graphs = tuple(
        dataclasses.replace(
            graph,
            outputs=tuple(o for o in graph.outputs if o.name not in OPTIONAL_VISION_OUTPUTS),
        )
        for graph in manifest.graphs
    )
    old = dataclasses.replace(manifest, graphs=graphs)
    assert set(METHODS) <= set(runnable_methods(manifest))
    assert not set(METHODS) & set(runnable_methods(old))
    assert "export the model again" in why_not_method("visionzip", old)
    directory = dataclasses.replace(pipeline.engine.directory, manifest=old)
    monkeypatch.setattr(pipeline.engine, "directory", directory)
    monkeypatch.setattr(pipeline, "manifest", old)
    with pytest.raises(MissingSignalError, match=r"visionzip needs patch_keys.*export the model"):
        pipeline.answer(query("visionzip", 5), [picture(3)])
    assert pipeline.answer(query("atp", 5), [picture(3)]).tokens.visual_kept == 5


@pytest.mark.parametrize("how", ["no text tower", "joint patches of the layer before"])
def test_a_last_layer_that_does_not_run_gives_its_keys_all_the_same(
    checkpoint: Path, text_tower: Path, pipeline: Pipeline, tmp_path: Path, how: str
) -> None:
    tower, changes = ("", {}) if how == "no text tower" else (str(text_tower), {"embed_layer": -2})
    out = export(checkpoint, tower, tmp_path / "model", **changes)
    found = Pipeline.load(PipelineConfig(model=str(out), engine="ort-cpu"))
    assert set(METHODS) <= set(runnable_methods(found.manifest))
    gates = found.manifest.parity["gates"]
    assert 0.0 <= gates["last_patch_keys_relative_l2"]["value"] <= 1e-4
    names = {node.name for node in onnx.load(out / "vision.onnx").graph.node}
    last = "vision.encoder.layers.2"
    assert any(name.startswith(f"{last}.self_attn.k_proj") for name in names)
    assert not any(name.startswith(f"{last}.mlp") for name in names)
    # As where the last layer runs.
    whole, short = (p.answer(query("prumerge", 5), [picture(4)]) for p in (pipeline, found))
    assert whole.token_ids == short.token_ids
    assert (whole.masks[0].kept == short.masks[0].kept).all()


def test_without_what_enters_the_last_layer_its_keys_are_not_there(tmp_path: Path) -> None:
    checkpoint = save_llava(tmp_path / "llava", llm_config("llama"), vision_layers=3)
    settings = json.loads((checkpoint / "config.json").read_text())
    settings["vision_feature_layer"] = -3
    (checkpoint / "config.json").write_text(json.dumps(settings))
    out = export(checkpoint, "", tmp_path / "model")
    pipeline = Pipeline.load(PipelineConfig(model=str(out), engine="ort-cpu"))
    assert "visionzip" in runnable_methods(pipeline.manifest)
    assert pipeline.answer(query("visionzip", 5), [picture(4)]).tokens.visual_kept == 5
    with pytest.raises(MissingSignalError, match=r"prumerge needs .*last layer.*--text-tower"):
        pipeline.answer(query("prumerge", 5), [picture(4)])
