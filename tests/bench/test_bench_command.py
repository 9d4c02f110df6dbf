"""``edge-atp bench`` on the shipped model, from the command line to what it writes."""

import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from edge_atp.bench import run as bench_run
from edge_atp.bench.questions import drawn_picture
from edge_atp.bench.tables import print_report
from edge_atp.cli import main
from edge_atp.evaluation.dataset_writer import DatasetWriter
from edge_atp.evaluation.labels import Example
from edge_atp.types import PatchGrid

WEIGHTS = Path(__file__).resolve().parents[2] / "models" / "warehouse_tiny" / "weights"
QUICK = ["--rounds", "1", "--keep", "64", "--start-up", "0", "--threads", "1", "--tokens", "3"]


@pytest.fixture(scope="module")
def one_question(tmp_path_factory):
    path = tmp_path_factory.mktemp("questions") / "questions.txt"
    path.write_text("where is the red box?\n")
    return path


def write_labels(folder, images=2):
    writer = DatasetWriter(folder, "test", 0, PatchGrid(16, 16), {"where": "exact"})
    for number in range(images):
        example = Example(0, "", "where is the red box?", "nowhere", "where", None)
        writer.add(f"scene_{number}", drawn_picture(320, 240), [example])
    return writer.finish()


def assert_narrow_tables_are_whole(report, text):
    console = Console(file=io.StringIO(), width=80)
    print_report(report, console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    tables = "\n".join(lines[lines.index("") :])
    assert "…" not in tables
    assert "preprocess" not in tables
    assert f"at {text}" in tables
    dense = next(line.split() for line in tables.splitlines() if line.split()[:1] == ["dense"])
    wall = report["results"]["short"]["contenders"]["dense"]["wall_ms"]["median"]
    assert dense[1:3] == ["256/256", f"{wall:.1f}"]


def test_a_benchmark_prints_tables_and_writes_json_and_plots(tmp_path, one_question, capsys):
    labels = write_labels(tmp_path / "labels")
    out = tmp_path / "out"
    words = ["bench", "warehouse_tiny", *QUICK, "--methods", "atp,none", "--out", str(out)]
    words += ["--questions", str(one_question), "--labelled", str(labels)]
    assert main(words) == 0
    shown = capsys.readouterr().out
    report = json.loads((out / "bench.json").read_text())
    text = f"{report['results']['short']['contenders']['dense']['text_tokens']:g} text"
    assert f"Short answers ({text} tokens" in shown
    assert shown.count(f"at {text}") == 2  # of dense, and prefill of dense
    assert "atp@64" in shown
    assert_narrow_tables_are_whole(report, text)
    assert report["complete"]
    assert report["kind"] == "measured"
    assert {"cpu", "cores", "load", "load_at_end", "is_busy"} <= set(report["machine"])
    assert any("--rounds 1" in warning for warning in report["warnings"])
    short = report["results"]["short"]
    assert list(short["contenders"]) == ["dense", "atp@64"]
    pruned = short["contenders"]["atp@64"]
    assert (pruned["visual_kept"], pruned["visual_total"]) == (64, 256)
    assert pruned["deterministic"]
    assert pruned["flops"]["of_dense"] < 1
    assert pruned["peak_rss_mb"] > 10
    assert short["pruning_share"]["atp@64"]["cpu"]["runs"] == 1
    assert "engine_share" not in short
    assert report["accuracy"]["num_questions"] == 2
    assert set(report["accuracy"]["exact"]) == {"dense", "atp@64"}
    for plot in ("latency_vs_tokens.png", "accuracy.png"):
        assert cv2.imread(str(out / plot)) is not None


def test_accuracy_may_come_from_an_evaluation_that_was_run(tmp_path, one_question, capsys):
    done = tmp_path / "evaluation"
    done.mkdir()
    exact = {"value": 0.75, "low": 0.7, "high": 0.8, "count": 100}
    arms = {"dense": {"exact": exact}, "atp@64": {"exact": exact}, "random@64": {"exact": exact}}
    (done / "summary.json").write_text(json.dumps({"num_questions": 100, "arms": arms}))
    words = ["bench", "warehouse_tiny", *QUICK, "--questions", str(one_question)]
    assert main([*words, "--labelled", str(done)]) == 0
    assert "75.0 %" in capsys.readouterr().out
    assert main([*words, "--labelled", str(tmp_path)]) == 2
    assert "neither dataset.json" in capsys.readouterr().err


def test_calibrate_then_ask_within_a_budget(tmp_path, one_question, capsys):
    words = ["bench", "warehouse_tiny", "--rounds", "1", "--calibrate"]
    assert main([*words, "--questions", str(one_question)]) == 0
    found = list((tmp_path / "cache" / "edge_atp" / "calibration").iterdir())
    assert [path.suffix for path in found] == [".json"]
    content = json.loads(found[0].read_text())
    assert content["identity"]["model_id"] == "warehouse_tiny"
    assert content["created"]
    assert {"total", "unseen"} <= set(content["residuals"])
    capsys.readouterr()
    picture = tmp_path / "cell.png"
    cv2.imwrite(str(picture), drawn_picture())
    ask = ["ask", str(picture), "where is the red box?", "--json", "--latency-budget-ms"]
    kept = []
    for budget_ms in ("0.001", "3600000"):
        assert main([*ask, budget_ms]) == 0
        answer = json.loads(capsys.readouterr().out)
        kept.append(answer["tokens"]["visual_kept"])
        assert answer["predicted_seconds"] > 0
    assert kept == [16, 256]  # the fewest that were measured, and all


def test_ask_within_a_budget_says_how_to_calibrate(tmp_path, capsys):
    picture = tmp_path / "cell.png"
    cv2.imwrite(str(picture), drawn_picture())
    assert main(["ask", str(picture), "where?", "--latency-budget-ms", "30"]) == 2
    assert "--calibrate" in capsys.readouterr().err
    budgets = ["--latency-budget-ms", "30", "--keep-tokens", "3"]
    assert main(["ask", str(picture), "where?", *budgets]) == 2
    assert "--keep-tokens or --latency-budget-ms, not both" in capsys.readouterr().err


def test_an_interrupted_benchmark_writes_what_it_has(tmp_path, monkeypatch, capsys):
    alternate = bench_run.alternate

    def interrupted(*args):
        for number, entry in enumerate(alternate(*args)):
            if number == 9:  # 2 contenders and 3 questions: in the second round
                raise KeyboardInterrupt
            yield entry

    monkeypatch.setattr(bench_run, "alternate", interrupted)
    words = ["bench", "warehouse_tiny", *QUICK, "--rounds", "50", "--out", str(tmp_path)]
    assert main([*words, "--no-plots"]) == 130
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["complete"] is False
    assert report["results"]["short"]["contenders"]["dense"]["wall_ms"]["runs"] >= 1
    assert "stopped early" in capsys.readouterr().out


@pytest.mark.export
def test_hugging_face_answers_the_same_tokens_in_a_process_of_its_own(
    tmp_path, one_question, capsys
):
    pytest.importorskip("torch", reason="needs the extra 'export'")
    pytest.importorskip("transformers", reason="needs the extra 'export'")
    words = ["bench", "warehouse_tiny:fp32", *QUICK, "--questions", str(one_question)]
    words += ["--against", "hf", str(WEIGHTS), "--out", str(tmp_path), "--no-plots"]
    assert main(words) == 0
    report = json.loads((tmp_path / "bench.json").read_text())
    short = report["results"]["short"]
    assert short["engine_share"]["cpu"]["median"] > 0
    assert set(short["against_hugging_face"]) == {"dense", "atp@64"}
    same = short["identical_tokens"]
    assert same["dense"] is same["expected"] is True
    # torch is heavy, and none of it is in this process's figure.
    rows = short["contenders"]
    assert rows["hugging face"]["peak_rss_mb"] > rows["dense"]["peak_rss_mb"] / 2
    assert report["model"]["dimensions"].endswith("config.json")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["no_such_model"], "no model directory"),
        (["warehouse_tiny", "--methods", "magic"], "magic"),
        (
            ["warehouse_tiny", "--methods", "atp,fastv"],
            "fastv, which this model directory does not",
        ),
        (["warehouse_tiny", "--keep", "0"], "--keep is '0'"),
        (["warehouse_tiny", "--keep", "x"], "--keep is 'x'"),
        (["warehouse_tiny", "--rounds", "0"], "--rounds"),
        (["warehouse_tiny", "--tokens", "0"], "--tokens is 0"),
        (["warehouse_tiny", "--against", "jax", "x"], "only hf"),
        (["warehouse_tiny", "--against", "hf", "absent"], "no checkpoint there"),
        (["warehouse_tiny", "--questions", "absent.txt"], "cannot be read"),
        (["warehouse_tiny", "--image", "absent.png"], "not an image"),
        (["warehouse_tiny", "--project", "jetson"], "choose from orin-nano"),
        (["warehouse_tiny", "--calibrate", "--out", "folder"], "ending in .json"),
        (["warehouse_tiny", "--calibrate", "--methods", "atp,random"], "measures one method"),
    ],
)
def test_what_does_not_fit_is_one_line_that_says_what_to_do(words, says, capsys):
    assert main(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_help_teaches_with_examples(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    shown = capsys.readouterr().out
    for word in ("--calibrate", "--against hf CHECKPOINT", "--project agx-orin", "examples:"):
        assert word in shown


def test_pictures_of_any_size_are_asked_about(tmp_path, one_question, capsys):
    picture = tmp_path / "small.png"
    cv2.imwrite(str(picture), np.full((30, 50, 3), 90, np.uint8))
    words = ["bench", "warehouse_tiny", *QUICK, "--questions", str(one_question)]
    assert main([*words, "--image", str(picture), "--standing"]) == 0
