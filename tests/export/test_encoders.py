"""Vision, text and selection graphs against transformers, open_clip and the host's methods."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from edge_atp.errors import ArtifactError, ConfigError, EdgeAtpError
from edge_atp.pruning import atp
from edge_atp.types import VisualSignals
from export.architecture import read_llava
from export.graph import GraphBuilder
from export.reference import Reference
from export.selection import emit_selection
from export.text_tower import emit_text_tower, load_text_tower, read_text_tower
from export.vision import emit_vision


@pytest.mark.parametrize("dialect", ["ort-gqa", "prim18"])
def test_vision_matches_transformers(
    checkpoint: Path, text_tower: Path, pixels: np.ndarray, dialect: str, tmp_path: Path
) -> None:
    model, tower = read_llava(checkpoint), read_text_tower(text_tower)
    graph = GraphBuilder("vision")
    emit_vision(graph, model.tensors, model.vision, tower.visual_projection, dialect=dialect)
    graph.save(tmp_path / "vision.onnx")
    session = ort.InferenceSession(str(tmp_path / "vision.onnx"))
    names = [output.name for output in session.get_outputs()]
    ours = {
        n: o[0] for n, o in zip(names, session.run(None, {"pixel_values": pixels}), strict=True)
    }
    expected = Reference(checkpoint, tower, -1).encode_image(pixels)
    tolerances = {"cls_attention": 1e-6, "last_cls_attention": 5e-6}
    for name in (*tolerances, "patch_features", "patch_embeds", "patch_keys", "last_patch_keys"):
        tolerance = tolerances.get(name, 2e-4)
        np.testing.assert_allclose(
            ours[name], getattr(expected, name), atol=tolerance, err_msg=name
        )
    assert not np.allclose(ours["patch_keys"], ours["last_patch_keys"], atol=0.1)
    assert np.ptp(expected.cls_attention) > 1e-3  # not a uniform row, which would match anything


@pytest.mark.parametrize("dialect", ["ort-gqa", "prim18"])
def test_the_value_path_matches_transformers(
    checkpoint: Path, text_tower: Path, pixels: np.ndarray, dialect: str, tmp_path: Path
) -> None:
    model, tower = read_llava(checkpoint), read_text_tower(text_tower)
    graph = GraphBuilder("vision")
    projection = tower.visual_projection
    emit_vision(graph, model.tensors, model.vision, projection, dialect=dialect, value_path=True)
    graph.save(tmp_path / "vision.onnx")
    session = ort.InferenceSession(str(tmp_path / "vision.onnx"))
    names = ["patch_embeds", "patch_features"]
    embeds, features = session.run(names, {"pixel_values": pixels})
    expected = Reference(checkpoint, tower, value_path=True).encode_image(pixels)
    np.testing.assert_allclose(embeds[0], expected.patch_embeds, atol=2e-4)
    np.testing.assert_allclose(features[0], expected.patch_features, atol=2e-4)
    raw = Reference(checkpoint, tower).encode_image(pixels)
    assert not np.allclose(embeds[0], raw.patch_embeds, atol=0.1)


def test_the_value_path_needs_a_last_layer_of_its_own(checkpoint: Path) -> None:
    model = read_llava(checkpoint)
    with pytest.raises(ConfigError, match=r"value .*projector reads that layer.*raw or negated"):
        emit_vision(
            GraphBuilder("vision"),
            model.tensors,
            replace(model.vision, feature_layer=-1),
            np.ones((24, 48), np.float32),
            dialect="prim18",
            value_path=True,
        )


@pytest.mark.parametrize("dialect", ["ort-gqa", "prim18"])
def test_text_tower_matches_transformers(text_tower: Path, dialect: str, tmp_path: Path) -> None:
    tower = read_text_tower(text_tower)
    graph = GraphBuilder("text")
    emit_text_tower(graph, tower, dialect=dialect)
    graph.save(tmp_path / "text.onnx")
    session = ort.InferenceSession(str(tmp_path / "text.onnx"))
    reference = tower.load_reference()
    for ids in ([[1, 40, 41, 3]], [[1, 90, 30, 31, 32, 77, 3]]):
        tokens = np.array(ids, np.int64)
        with torch.inference_mode():
            expected = reference(torch.from_numpy(tokens))[0].numpy()
        (embed,) = session.run(None, {"input_ids": tokens, "attention_mask": np.ones_like(tokens)})
        np.testing.assert_allclose(embed[0], expected, atol=1e-5)
        padded = np.pad(tokens, ((0, 0), (0, 4)))
        mask = np.pad(np.ones_like(tokens), ((0, 0), (0, 4)))
        (embed,) = session.run(None, {"input_ids": padded, "attention_mask": mask})
        np.testing.assert_allclose(embed[0], expected, atol=1e-5)


def test_vision_layer_out_of_range(checkpoint: Path) -> None:
    model = read_llava(checkpoint)
    with pytest.raises(ArtifactError, match=r"embed_layer is -9.*3 layers"):
        emit_vision(
            GraphBuilder("vision"),
            model.tensors,
            model.vision,
            np.ones((24, 48), np.float32),
            dialect="prim18",
            embed_layer=-9,
        )


@pytest.mark.parametrize("source", ["raw", "negated"])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_selection_graph_equals_the_host_method(alpha: float, source: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    attention = rng.random((1, 60)).astype(np.float32)
    patches = rng.normal(size=(1, 60, 8)).astype(np.float32)
    # Duplicated patches tie exactly, and a zero patch has no direction.
    patches[0, 40:50], attention[0, 40:50] = patches[0, 10:20], attention[0, 10:20]
    patches[0, 5] = 0.0
    text = rng.normal(size=(1, 8)).astype(np.float32)
    graph = GraphBuilder("select_atp")
    emit_selection(graph, 60, 8, source)
    graph.save(tmp_path / "select_atp.onnx")
    session = ort.InferenceSession(str(tmp_path / "select_atp.onnx"))
    signals = VisualSignals(cls_attention=attention[0], patch_embeds=patches[0], text_embed=text[0])
    pruner = atp.Method(alpha=alpha, relevance_source=source)
    for num_kept in (1, 15, 30, 60):
        kept, scores = session.run(
            None,
            {
                "cls_attention": attention,
                "patch_embeds": patches,
                "text_embed": text,
                "alpha": np.array(alpha, np.float32),
                "num_kept": np.array([num_kept], np.int64),
            },
        )
        expected = pruner.select(signals, num_kept)
        np.testing.assert_array_equal(kept, expected.kept_indices)
        np.testing.assert_allclose(scores, expected.scores, atol=1e-6)


def test_open_clip_text_tower(tmp_path: Path) -> None:
    """An open_clip model of random weights gives the same ids and embedding when exported."""
    open_clip = pytest.importorskip("open_clip", reason="needs open_clip_torch")
    sizes = {"width": 32, "layers": 2}
    text = {**sizes, "heads": 2, "context_length": 77, "vocab_size": 49408}
    vision = {**sizes, "image_size": 28, "patch_size": 7, "head_width": 16}
    card = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "Tiny-CLIP.json").write_text(json.dumps(card))
    open_clip.add_model_config(tmp_path / "Tiny-CLIP.json")
    weights = tmp_path / "weights.pt"
    torch.save(open_clip.create_model("Tiny-CLIP").state_dict(), weights)
    tower = load_text_tower(f"open_clip:Tiny-CLIP/{weights}")
    graph = GraphBuilder("text")
    emit_text_tower(graph, tower, dialect="ort-gqa")
    graph.save(tmp_path / "text.onnx")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tower.tokenizer))
    original = open_clip.get_tokenizer("ViT-B-32")
    for text in ("What is on the left?", "It's  a café — 3 boxes, don't!\nOK", "日本語 ❤ 12345"):
        ids = tokenizer.encode(text).ids
        padded = original([text])[0].tolist()
        assert ids == padded[: padded.index(tower.eos_token_id) + 1]
    tokens = np.array([ids], np.int64)
    with torch.inference_mode():
        expected = tower.load_reference()(torch.from_numpy(tokens))[0].numpy()
    session = ort.InferenceSession(str(tmp_path / "text.onnx"))
    (embed,) = session.run(None, {"input_ids": tokens, "attention_mask": np.ones_like(tokens)})
    np.testing.assert_allclose(embed[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "error", "why"),
    [
        ("ViT-Z-99/openai", ConfigError, r"no model 'ViT-Z-99'"),
        ("ViT-B-32", ConfigError, r"give open_clip:ViT-B-32/TAG \(there are: openai, "),
        ("ViT-B-32/mine", ConfigError, r"cannot load 'ViT-B-32' .*'mine' .*its tags are: openai, "),
        ("roberta-ViT-B-32/laion2b_s12b_b32k", ArtifactError, "not CLIP's own"),
    ],
)
def test_open_clip_models_that_cannot_be_read(
    name: str, error: type[EdgeAtpError], why: str
) -> None:
    pytest.importorskip("open_clip", reason="needs open_clip_torch")
    with pytest.raises(error, match=why):
        load_text_tower(f"open_clip:{name}")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_damaged_open_clip_weights_are_an_error_that_names_them(
    tmp_path: Path, suffix: str
) -> None:
    pytest.importorskip("open_clip", reason="needs open_clip_torch")
    weights = tmp_path / f"weights{suffix}"
    weights.write_bytes(b"no weights")
    with pytest.raises(ConfigError, match=rf"with weights '{weights}'"):
        load_text_tower(f"open_clip:ViT-B-32/{weights}")
