"""Golden answers re-run on this machine, and that another model is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edge_atp.errors import ArtifactError
from edge_atp.runtime import golden
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.model_dir import ModelDirectory


def test_this_machine_computes_the_shipped_model(engine: Engine) -> None:
    report = golden.verify(engine)
    assert report.cases >= 6
    assert report.passed, report


def test_other_answers_are_noticed(model_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = json.loads((model_copy / "golden.json").read_text())
    for case in cases:
        case["token_ids"] = [token + 1 for token in case["token_ids"]] or [5]
    (model_copy / "golden.json").write_text(json.dumps(cases))
    monkeypatch.setattr(ModelDirectory, "_check", lambda *args: None)
    report = golden.verify(Engine.load(ModelDirectory.open(model_copy), "ort-cpu"))
    assert not report.passed
    assert report.kept_jaccard == 1.0


@pytest.mark.parametrize("content", ["[]", "{", '[{"image": 0}]'])
def test_damaged_golden_file_is_named(
    model_copy: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model_copy / "golden.json").write_text(content)
    monkeypatch.setattr(ModelDirectory, "_check", lambda *args: None)
    with pytest.raises(ArtifactError, match=r"golden.json"):
        golden.verify(Engine.load(ModelDirectory.open(model_copy), "ort-cpu"))


def test_pictures_differ() -> None:
    first, second = golden.pattern_picture(32, 0), golden.pattern_picture(32, 1)
    assert first.shape == (1, 3, 32, 32)
    assert np.abs(first - second).mean() > 0.1
