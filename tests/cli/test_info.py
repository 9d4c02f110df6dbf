"""`edge-atp info`: the answers recorded at export, run again on this machine."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_atp.cli.main import main

SHIPPED = Path(__file__).parents[2] / "models" / "warehouse_tiny" / "onnx"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(SHIPPED, tmp_path / "model")


def rehash(folder: Path, name: str) -> None:
    """Make the manifest agree with a changed file, as someone with bad intent would."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    content = (folder / name).read_bytes()
    spec = next(f for f in manifest["files"] if f["path"] == name)
    spec.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    path.write_text(json.dumps(manifest))


def edit_golden(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    cases = json.loads((folder / "golden.json").read_text())
    for case in cases:
        change(case)
    (folder / "golden.json").write_text(json.dumps(cases))


def verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["info", str(folder), "--verify", "--engine", "ort-cpu"])
    captured = capsys.readouterr()
    return code, " ".join((captured.out + captured.err).split())


def test_this_machine_computes_the_shipped_model(capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = verify(SHIPPED, capsys)
    assert code == 0
    assert "golden answers on ort-cpu: passed" in shown


def test_changed_golden_answers_are_refused_by_their_hash(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_golden(model, lambda case: case.update(token_ids=[5, 6, 7]))
    code, shown = verify(model, capsys)
    assert code != 0
    # The terminal may break a long path anywhere.
    assert "golden.jsonhas" in shown.replace(" ", "")
    assert "altered" in shown


@pytest.mark.parametrize(
    ("change", "value"),
    [
        (lambda case: case.update(token_ids=[t + 1 for t in case["token_ids"]] or [5]), "tokens 0"),
        (lambda case: case.update(kept_indices=case["kept_indices"][::2]), "kept patches 0.5"),
    ],
)  # fmt: skip
def test_golden_answers_of_another_model_differ(
    model: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], None],
    value: str,
) -> None:
    """Hashes all match; what this machine computes does not."""
    edit_golden(model, change)
    rehash(model, "golden.json")
    code, shown = verify(model, capsys)
    assert code == 1
    assert "golden answers on ort-cpu: failed" in shown
    assert value in shown


def test_weights_of_another_model_differ(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = np.load(model / "embed_tokens.npy")
    np.save(model / "embed_tokens.npy", np.roll(table, 7, axis=0))
    rehash(model, "embed_tokens.npy")
    code, shown = verify(model, capsys)
    assert code == 1
    assert "failed" in shown


def test_directory_without_golden_answers(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((model / "manifest.json").read_text())
    manifest["files"] = [f for f in manifest["files"] if f["role"] != "golden"]
    (model / "manifest.json").write_text(json.dumps(manifest))
    code, shown = verify(model, capsys)
    assert code != 0
    assert "no file of role 'golden'" in shown


def test_a_backend_that_is_not_here_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["info", str(SHIPPED), "--verify", "--engine", "nonsense"])
    assert code != 0
    assert "'nonsense'" in capsys.readouterr().err
