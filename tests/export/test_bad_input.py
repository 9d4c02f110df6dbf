"""What an export refuses, said before or without leaving anything behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoints import PROMPT

from edge_atp.errors import ArtifactError, ConfigError
from edge_atp.runtime.model_dir import ModelDirectory
from export import recipe
from export.__main__ import main
from export.settings import ExportSettings


@pytest.fixture
def weights(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(checkpoint, tmp_path / "weights")


def export(weights: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["--model", str(weights), "--prompt", PROMPT, "--no-compare", "--out", str(out)])
    return code, " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "suffix",
    [
        "layers.1.mlp.down_proj.weight",
        "layers.2.self_attn.k_proj.weight",
        "post_layernorm.weight",
        # transformers would start these at zero, and the comparison would agree on it.
        "projector.linear_2.bias",
        "layers.0.self_attn.q_proj.bias",
    ],
)
def test_missing_tensor_is_named_and_nothing_is_left(
    weights: Path, text_tower: Path, tmp_path: Path, suffix: str
) -> None:
    tensors = load_file(str(weights / "model.safetensors"))
    name = next(n for n in tensors if n.endswith(suffix))
    del tensors[name]
    save_file(tensors, str(weights / "model.safetensors"), {"format": "pt"})
    settings = ExportSettings(weights, text_tower=str(text_tower), prompt=PROMPT, compare=False)
    with pytest.raises(ArtifactError, match=rf"{suffix}' is missing from .*incomplete"):
        recipe.export_model(settings, tmp_path / "model", progress=lambda step: None)
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_pickled_weights_alone_are_refused(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (weights / "model.safetensors").rename(weights / "pytorch_model.bin")
    code, shown = export(weights, tmp_path / "model", capsys)
    assert code == 1
    assert "only pickled weights (pytorch_model.bin)" in shown
    assert "safe_serialization" in shown
    assert not (tmp_path / "model").exists()


def test_a_cache_too_short_for_an_image_is_refused_before_any_graph(
    checkpoint: Path, tmp_path: Path
) -> None:
    settings = ExportSettings(checkpoint, prompt=PROMPT, max_kv=40)
    written: list[str] = []
    with pytest.raises(ConfigError, match=r"max_kv is 40; an image has 16 .*--max-kv"):
        recipe.export_model(settings, tmp_path / "model", progress=written.append)
    assert not written


def test_a_folder_without_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = export(tmp_path, tmp_path / "model", capsys)
    assert code == 1
    assert "config.json cannot be read (No such file or directory); give a Hugging" in shown


def test_a_place_that_is_none_is_said_plainly(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    code, shown = export(checkpoint, tmp_path / "file" / "model", capsys)
    assert code == 1
    assert "Not a directory" in shown
    assert shown.endswith("nothing was written")


def test_truncated_checkpoint_is_refused(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = weights / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    code, shown = export(weights, tmp_path / "model", capsys)
    assert code == 1
    assert "is no valid safetensors file" in shown.replace("\n", "")


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damaged_external_weights_are_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Weights outside of the graph file are checked like everything else."""
    monkeypatch.setattr(recipe, "_EXTERNAL_BYTES", 1000)
    settings = ExportSettings(checkpoint, prompt=PROMPT, compare=False)
    out = recipe.export_model(settings, tmp_path / "model", progress=lambda step: None).path
    path = out / "decoder.weights"
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "altered":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match=r"decoder.weights (has|is missing)"):
        ModelDirectory.open(out)
