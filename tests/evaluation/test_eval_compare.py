"""``edge-atp compare`` and ``edge-atp flops``."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from edge_atp.cli import main
from edge_atp.config import PipelineConfig
from edge_atp.evaluation.arms import split_methods
from edge_atp.evaluation.comparison import compare
from edge_atp.pipeline import Pipeline
from edge_atp.types import Frame


@pytest.fixture
def pipeline(tiny_model):
    pipeline = Pipeline.load(PipelineConfig(model=str(tiny_model), num_threads=1, max_new_tokens=3))
    yield pipeline
    pipeline.close()


def test_cells_are_the_pipelines_answers_from_one_encoding(pipeline, monkeypatch):
    image = np.random.default_rng(0).integers(0, 255, (30, 40, 3)).astype(np.uint8)
    encoded = []
    encode = Pipeline.encode
    monkeypatch.setattr(
        Pipeline,
        "encode",
        lambda self, *rest, **options: encoded.append(1) or encode(self, *rest, **options),
    )
    dense, rows = compare(pipeline, Frame(image), "where?", ["atp", "random"], [8, 2])
    assert len(encoded) == 2  # to warm up, and timed
    assert [[cell.arm.name for cell in row] for row in rows] == [
        ["atp@8", "random@8"],
        ["atp@2", "random@2"],
    ]
    for row in rows:
        for cell in row:
            assert cell.answer.tokens.visual_kept == cell.arm.num_kept
            assert cell.seconds > 0.0
            assert cell.agrees == (cell.answer.text.lower() == dense.answer.text.lower())
    assert dense.answer.tokens.visual_kept == 16


def test_probing_names_the_missing_signal(pipeline):
    usable, refused = split_methods(pipeline.manifest)
    assert {"atp", "cls_topk", "random", "spatial"} <= set(usable)
    assert not set(usable) & set(refused)
    for reason in refused.values():
        assert "enable" in reason
    blind = replace(pipeline.manifest, text_tower=None)
    usable, refused = split_methods(blind)
    assert "atp" not in usable
    assert "text_embed" in refused["atp"]


# A random model answers in scripts that the plotting font lacks.
@pytest.mark.filterwarnings("ignore:Glyph")
def test_the_command_draws_a_sheet(tmp_path, tiny_model, capsys):
    image = tmp_path / "scene.png"
    cv2.imwrite(str(image), np.full((48, 64, 3), 90, np.uint8))
    out = tmp_path / "sheets" / "compare.png"
    arguments = ["compare", str(image), "what is it?", "--model", str(tiny_model)]
    arguments += ["--out", str(out), "--keep", "8,4"]
    pytest.importorskip("matplotlib", reason="the sheet needs the `evaluation` extra")
    assert main([*arguments, "--methods", "atp,cls_topk,random"]) == 0
    sheet = cv2.imread(str(out))
    assert sheet.shape[1] > sheet.shape[0]
    text = capsys.readouterr().out
    assert "cls_topk" in text
    assert "as dense" in text
    assert main([*arguments, "--methods", "atp,tome"]) == 2
    assert "--vision-groups 1" in capsys.readouterr().err
    assert main([*arguments, "--keep", "99"]) == 2
    assert "--keep has 99" in capsys.readouterr().err


def test_flops_prints_the_published_figures(capsys):
    arguments = ["flops", "llava-1.5-7b", "--keep", "64", "--text-tokens", "512"]
    assert main([*arguments, "--convention", "papers", "--methods", "ivtp", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    dense, ivtp = result["rows"]
    assert dense["prefill"] == pytest.approx(15.003, rel=0.02)
    assert ivtp["total"] == pytest.approx(8.228, rel=0.02)
    assert main([*arguments, "--methods", "cls_topk"]) == 0
    text = capsys.readouterr().out
    assert "TFLOPs" in text
    assert "cls_topk" in text


def test_flops_reads_a_checkpoint_folder(tiny_model, capsys):
    folder = tiny_model.parent / "llava"
    assert main(["flops", str(folder), "--methods", "random"]) == 0
    text = capsys.readouterr().out
    assert "GFLOPs" in text
    assert "16 visual tokens" in text
    assert main(["flops", "llava-9b"]) == 2
    assert "choose one of llava-1.5-7b" in capsys.readouterr().err
    assert main(["flops", str(folder), "--keep", "many"]) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--text-tokens", "-1"], "--text-tokens"),
        (["--text-tower", "absent"], "--text-tower needs a checkpoint folder"),
        (["--methods", "atp,,tome"], "--methods is 'atp,,tome'"),
    ],
)
def test_flops_refuses_what_it_cannot_count(words, says, capsys):
    assert main(["flops", "llava-1.5-7b", *words]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--processes", "0"], ["--limit", "0"], ["--limit", "-3"]])
def test_evaluate_refuses_counts_below_one(words, tmp_path, capsys):
    assert main(["evaluate", str(tmp_path), "--out", str(tmp_path / "o"), *words]) == 2
    assert "at least 1" in capsys.readouterr().err
