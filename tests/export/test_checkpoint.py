"""Reading checkpoints: what is refused, and that names of old and new layouts agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from edge_atp.errors import ArtifactError
from export.architecture import canonical_name
from export.checkpoint import TensorStore


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(ArtifactError, match=r"pytorch_model.bin.*refused"):
        TensorStore(tmp_path)


def test_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(ArtifactError, match=r"model.safetensors is no valid safetensors"):
        TensorStore(tmp_path)


def test_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": np.ones((64, 64), np.float32)}, str(path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"model.safetensors is no valid safetensors"):
        TensorStore(tmp_path)


def test_nan_is_named(tmp_path: Path) -> None:
    save_file({"w": np.array([1.0, np.nan], np.float32)}, str(tmp_path / "model.safetensors"))
    with pytest.raises(ArtifactError, match=r"'w'.*NaN"):
        TensorStore(tmp_path).get("w")


def test_quantised_checkpoint_is_refused(tmp_path: Path) -> None:
    save_file({"w": np.ones(4, np.int8)}, str(tmp_path / "model.safetensors"))
    with pytest.raises(ArtifactError, match=r"'w'.*type I8"):
        TensorStore(tmp_path).get("w")


@pytest.mark.parametrize(
    ("stored", "canonical"),
    [
        ("vision_tower.vision_model.post_layernorm.weight", "vision.post_layernorm.weight"),
        ("vision_tower.post_layernorm.weight", "vision.post_layernorm.weight"),
        ("model.vision_tower.vision_model.post_layernorm.bias", "vision.post_layernorm.bias"),
        ("language_model.model.norm.weight", "llm.norm.weight"),
        ("model.language_model.norm.weight", "llm.norm.weight"),
        ("language_model.lm_head.weight", "llm.lm_head.weight"),
        ("lm_head.weight", "llm.lm_head.weight"),
        ("multi_modal_projector.linear_1.bias", "projector.linear_1.bias"),
        ("model.multi_modal_projector.linear_1.bias", "projector.linear_1.bias"),
    ],
)
def test_names_of_every_transformers_layout(stored: str, canonical: str) -> None:
    assert canonical_name(stored) == canonical
