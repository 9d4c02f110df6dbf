"""What a model directory refuses, always with the file or field named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_atp.errors import ArtifactError
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.model_dir import ModelDirectory


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_shipped_directory_is_sound(shipped: Path) -> None:
    manifest = ModelDirectory.open(shipped).manifest
    assert manifest.model_id == "warehouse_tiny"
    assert manifest.parity["prompts"] >= 32
    assert {g.role for g in manifest.graphs} >= {"vision", "text", "project", "decoder"}


@pytest.mark.parametrize("name", ["decoder.onnx", "embed_tokens.npy", "tokenizer.json"])
def test_flipped_byte_is_refused(model_copy: Path, name: str) -> None:
    path = model_copy / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name} has SHA-256.*damaged.*export it again"):
        ModelDirectory.open(model_copy)


def test_truncated_file_is_refused_even_unverified(model_copy: Path) -> None:
    path = model_copy / "vision.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"vision.onnx has \d+ bytes.*truncated"):
        ModelDirectory.open(model_copy, verify=False)


def test_missing_file_is_named(model_copy: Path) -> None:
    (model_copy / "project.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"project.onnx is missing"):
        ModelDirectory.open(model_copy)


def test_missing_manifest_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"manifest.json is missing.*python -m export"):
        ModelDirectory.open(tmp_path)
    with pytest.raises(ArtifactError, match="is no directory"):
        ModelDirectory.open(tmp_path / "nowhere")


def test_unreadable_manifest(model_copy: Path) -> None:
    (model_copy / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"manifest.json cannot be read"):
        ModelDirectory.open(model_copy)


@pytest.mark.parametrize("escape", ["../secret", "/etc/hostname", "a/../../secret", "."])
def test_paths_may_not_leave_the_directory(model_copy: Path, escape: str) -> None:
    (model_copy.parent / "secret").write_text("x")
    edit(model_copy, lambda m: m["files"][0].update(path=escape))
    with pytest.raises(ArtifactError, match="leaves the model directory"):
        ModelDirectory.open(model_copy)


def test_link_out_of_the_directory_is_refused(model_copy: Path) -> None:
    target = model_copy.parent / "elsewhere.onnx"
    (model_copy / "vision.onnx").rename(target)
    (model_copy / "vision.onnx").symlink_to(target)
    with pytest.raises(ArtifactError, match="leaves the model directory"):
        ModelDirectory.open(model_copy)


def test_unlisted_graph_is_refused(model_copy: Path) -> None:
    def swap(manifest: dict[str, Any]) -> None:
        decoder = next(g for g in manifest["graphs"] if g["role"] == "decoder")
        decoder["file"] = "other.onnx"

    edit(model_copy, swap)
    with pytest.raises(ArtifactError, match=r"'other.onnx'.*not list with a hash"):
        ModelDirectory.open(model_copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=99), r"format_version is 99.*reads 1"),
        (lambda m: m.pop("llm"), r"manifest.json.llm is missing"),
        (lambda m: m["llm"].update(layers="four"), r"llm.layers is 'four'.*type int"),
        (lambda m: m["llm"].update(layers=True), r"llm.layers is True"),
        (lambda m: m["llm"].update(kv_heads=3), r"llm.heads is \d+, not a multiple"),
        (lambda m: m["preprocess"].update(resize="stretch"), r"'stretch'.*squash"),
        (lambda m: m["preprocess"].update(mean=0.5), r"preprocess.mean is 0.5.*list"),
        (lambda m: m["vision"].update(num_patches=7), r"num_patches is 7"),
        (lambda m: m["prompt"].update(template="{question}"), r"\{image\} exactly once"),
        (lambda m: m["files"][0].update(bytes=None), r"files\[0\].bytes is None"),
    ],
)
def test_wrong_field_is_named(
    model_copy: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit(model_copy, change)
    with pytest.raises(ArtifactError, match=message):
        ModelDirectory.open(model_copy)


def test_unknown_decoder_dialect(model_copy: Path) -> None:
    def rename(manifest: dict[str, Any]) -> None:
        next(g for g in manifest["graphs"] if g["role"] == "decoder")["dialect"] = "prim99"

    edit(model_copy, rename)
    with pytest.raises(ArtifactError, match=r"'prim99' is not known.*ort-gqa"):
        Engine.load(ModelDirectory.open(model_copy), "ort-cpu")


def test_damaged_graph_behind_a_matching_hash(model_copy: Path) -> None:
    """Whoever edits the manifest too still gets an error of ours, not of the backend."""
    import hashlib

    content = b"no graph at all"
    (model_copy / "text.onnx").write_bytes(content)

    def rehash(manifest: dict[str, Any]) -> None:
        spec = next(f for f in manifest["files"] if f["path"] == "text.onnx")
        spec.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    edit(model_copy, rehash)
    with pytest.raises(ArtifactError, match=r"text.onnx cannot be loaded"):
        Engine.load(ModelDirectory.open(model_copy), "ort-cpu")
