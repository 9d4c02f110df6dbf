"""NVIDIA's Polygraphy reads the graphs for TensorRT, and its sanitising changes no answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from tiny_checkpoints import PROMPT

from export import recipe
from export.settings import ExportSettings

pytest.importorskip("polygraphy", reason="the `dev` extra installs polygraphy")
pytest.importorskip("onnx_graphsurgeon", reason="the `dev` extra installs onnx-graphsurgeon")

# The command's own deprecations are no failure of ours.
_POLYGRAPHY = [sys.executable, "-W", "ignore", "-c", "from polygraphy.tools import main; main()"]


@pytest.fixture(scope="module")
def folder(checkpoint: Path, text_tower: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in dialect prim17; read-only."""
    settings = ExportSettings(
        checkpoint,
        text_tower=str(text_tower),
        prompt=PROMPT,
        max_text_tokens=64,
        max_kv=96,
        dialect="prim17",
        compare=False,
    )
    out = tmp_path_factory.mktemp("polygraphy") / "model"
    return recipe.export_model(settings, out, progress=lambda step: None).path


def polygraphy(*arguments: str) -> str:
    done = subprocess.run(
        [*_POLYGRAPHY, *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_inspect_model_sees_inputs_outputs_and_nodes(folder: Path) -> None:
    shown = polygraphy("inspect", "model", str(folder / "decoder.onnx"), "--show", "layers")
    assert "ONNX Opset: 17" in shown
    assert "inputs_embeds [dtype=float32, shape=(1, 'tokens', 64)]" in shown
    assert "past.2.value [dtype=float32, shape=(1, 2, 'past', 16)]" in shown
    assert "logits [dtype=float32, shape=(1, 320)]" in shown
    assert "[Op: Softmax]" in shown


def feed(session: ort.InferenceSession, tokens: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = {"tokens": tokens, "past": 3, "total": tokens + 3, "num_features": 16, "num_kept": 5}
    values = {}
    for spec in session.get_inputs():
        shape = [sizes.get(side, side) for side in spec.shape]
        if spec.type == "tensor(int64)":
            values[spec.name] = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
        else:
            values[spec.name] = rng.normal(size=shape).astype(np.float32)
    return values


@pytest.mark.parametrize("graph", ["vision", "decoder"])
def test_surgeon_sanitize_keeps_the_answers(folder: Path, graph: str, tmp_path: Path) -> None:
    cleaned = tmp_path / f"{graph}.onnx"
    source = str(folder / f"{graph}.onnx")
    polygraphy("surgeon", "sanitize", source, "--fold-constants", "-o", str(cleaned))
    sessions = [ort.InferenceSession(path) for path in (source, str(cleaned))]
    inputs = feed(sessions[0], 4)
    assert [v.name for v in sessions[1].get_inputs()] == list(inputs)
    before, after = (session.run(None, inputs) for session in sessions)
    assert len(before) == len(after)
    for mine, theirs in zip(before, after, strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=1e-5, atol=1e-5)
