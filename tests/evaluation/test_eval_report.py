"""From answers of known quality to numbers, tables, pictures, defaults."""

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import cv2
import pytest
from rich.console import Console

from edge_atp.cli import main
from edge_atp.errors import ConfigError, DatasetError
from edge_atp.evaluation import plots
from edge_atp.evaluation.arms import Arm, dense_arm
from edge_atp.evaluation.baseline import against_baseline
from edge_atp.evaluation.conditions import robustness_conditions
from edge_atp.evaluation.dataset import LabelledDataset
from edge_atp.evaluation.defaults import Candidate, decide
from edge_atp.evaluation.defaults_yaml import write_yaml
from edge_atp.evaluation.failures import find_failures, write_failure_sheet
from edge_atp.evaluation.plots import curves, write_plots
from edge_atp.evaluation.records import ArmAnswer, Record
from edge_atp.evaluation.scores import build_table
from edge_atp.evaluation.summary import summarise
from edge_atp.evaluation.tables import print_summary

ARMS = (dense_arm(16), Arm("atp", 8), Arm("atp", 4), Arm("random", 8), Arm("random", 4))
DISTURBED = (ARMS[0], ARMS[2])


def answer(example, right: bool, arm: Arm) -> ArmAnswer:
    text = example.answer if right else "wrong"
    kept = None if example.target is None else arm.num_kept / 16
    return ArmAnswer(text, 0.9 if right else 0.4, arm.num_kept, kept, arm.num_kept / 1000)


def made_up(dataset: LabelledDataset, wrong: dict[str, set[int]]) -> list[Record]:
    """Clean answers: right but on the lines given per arm."""
    return [
        Record(
            e.line,
            "clean",
            {a.name: answer(e, e.line not in wrong.get(a.name, ()), a) for a in ARMS},
        )
        for e in dataset.examples
    ]


@pytest.fixture
def records(squares_dataset) -> list[Record]:
    # Lines 1, 4, 7... ask for a colour, 2, 5, 8... for a place, 3, 6, 9... for a caption.
    wrong = {"random@4": {1, 2, 4, 5, 7, 3}, "random@8": {1}, "dense": {2}, "atp@4": {2, 5}}
    clean = made_up(squares_dataset, wrong)
    disturbed = [
        Record(e.line, c.name, {a.name: answer(e, e.line != 1, a) for a in DISTURBED})
        for c in robustness_conditions(squares_dataset.examples)
        for e in squares_dataset.examples[:6]
        if c.question(e)
    ]
    return [*clean, *disturbed]


@pytest.fixture
def summary(squares_dataset, records):
    return summarise(squares_dataset, records, ARMS, DISTURBED, num_draws=300)


def test_numbers_by_hand(summary):
    arms = summary["arms"]
    assert summary["num_images"] == 6
    assert arms["dense"]["exact"]["value"] == pytest.approx(11 / 12)
    assert arms["random@4"]["exact"]["value"] == pytest.approx(7 / 12)
    assert arms["random@4"]["minus_dense"]["value"] == pytest.approx(-4 / 12)
    assert arms["random@4"]["families"]["colour"]["value"] == pytest.approx(3 / 6)
    assert arms["random@4"]["token_f1"]["value"] == pytest.approx(5 / 6)
    assert arms["atp@4"]["grounding"]["value"] == 0.25
    assert arms["atp@4"]["grounding"]["count"] == 12
    # Of 18 answers: dense is wrong on line 2 as atp@4 is, which differs on line 5 alone.
    assert arms["atp@4"]["agreement"]["value"] == pytest.approx(17 / 18)
    assert arms["dense"]["latency_ms"]["p50"] == pytest.approx(16.0)
    assert arms["dense"]["calibration"]["ece"] == pytest.approx((11 * 0.1 + 0.4) / 12)
    pair = summary["paired"]["atp@4 - random@4"]
    assert pair["value"] == pytest.approx(10 / 12 - 7 / 12)
    assert pair["low"] <= pair["value"] <= pair["high"]
    assert "atp@4 - random@8" not in summary["paired"]


def test_robustness_is_paired_with_the_same_questions_clean(summary):
    blurred = summary["robustness"]["blur@3"]
    # Four short questions, line 1 wrong; clean dense is wrong on line 2, atp@4 on 2 and 5.
    assert blurred["dense"]["exact"]["value"] == pytest.approx(3 / 4)
    assert blurred["dense"]["minus_clean"]["value"] == pytest.approx(0.0)
    assert blurred["atp@4"]["minus_clean"]["value"] == pytest.approx(3 / 4 - 2 / 4)
    assert summary["robustness"]["paraphrase"]["dense"]["exact"]["count"] == 2


def test_summary_is_plain_json(summary):
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_a_baseline_is_compared_on_the_questions_of_both(squares_dataset, records):
    before = made_up(squares_dataset, {"atp@4": {2, 5, 8, 4}})[:-3]  # the last image is missing
    found = against_baseline(squares_dataset, records, before, ["dense", "atp@4", "atp@2"])
    # Ten short questions of five images: now wrong on 2 and 5, before on 8 and 4 as well.
    assert found["atp@4"]["value"] == pytest.approx(2 / 10)
    assert found["atp@4"]["count"] == 10
    assert found["dense"]["value"] == pytest.approx(-1 / 10)
    assert set(found) == {"dense", "atp@4"}
    assert against_baseline(squares_dataset, records, [], ["dense"]) == {}


def test_no_record_is_no_number(squares_dataset):
    summary = summarise(squares_dataset, [], ARMS)
    assert summary["num_questions"] == 0
    print_summary(summary, Console(file=io.StringIO()))


def test_a_record_of_other_arms_is_refused(squares_dataset, records):
    with pytest.raises(DatasetError, match=r"line 1 \(clean\) does not fit"):
        build_table(squares_dataset, records, "clean", ["dense", "tome@4"])


@pytest.mark.parametrize("width", [80, 160])
def test_tables_show_the_numbers(summary, width):
    out = io.StringIO()
    print_summary(summary, Console(file=out, width=width))
    text = out.getvalue()
    assert "91.7" in text  # dense
    assert "58.3" in text  # random@4
    assert "atp@4 - random@4" in text
    assert "+25.0 [" in text
    assert "paraphrase" in text


def test_curves_start_at_dense(summary):
    points = curves(summary["arms"], "exact")["atp"]
    assert [point["num_kept"] for point in points] == [16, 8, 4]


def test_pictures_are_drawn(tmp_path, squares_dataset, records, summary):
    pytest.importorskip("matplotlib", reason="plots need the `evaluation` extra")
    written = write_plots(summary, tmp_path)
    failures = find_failures(squares_dataset, records, "random@4", count=3)
    written.append(write_failure_sheet(squares_dataset, failures, "random@4", tmp_path / "f.png"))
    assert {path.name for path in written} == {
        "accuracy_vs_tokens.png",
        "accuracy_vs_latency.png",
        "reliability.png",
        "grounding.png",
        "robustness.png",
        "f.png",
    }
    for path in written:
        picture = cv2.imread(str(path))
        assert min(picture.shape[:2]) > 300
        assert picture.std() > 10  # not a blank sheet


def test_a_method_without_a_budget_has_a_line_of_its_own(
    tmp_path, squares_dataset, records, monkeypatch
):
    """Its arm has 0 for a budget, which has no place on a logarithmic axis."""
    pytest.importorskip("matplotlib", reason="plots need the `evaluation` extra")
    own = [
        replace(r, arms={**r.arms, "vtw": r.arms["random@4"]})
        for r in records
        if r.condition == "clean"
    ]
    found = summarise(squares_dataset, own, (*ARMS, Arm("vtw", 0)))
    figures = {}
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.setdefault(path.name, figure))
    write_plots(found, tmp_path)

    (axes,) = figures["accuracy_vs_tokens.png"].axes
    assert axes.get_xticks().tolist() == [4, 8, 16]
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["vtw (no budget)"].get_ydata()) == pytest.approx([100 * 7 / 12] * 2)
    assert "vtw" not in lines
    out = io.StringIO()
    print_summary(found, Console(file=out, width=160))
    headings = next(line for line in out.getvalue().splitlines() if "method" in line).split()
    assert headings == ["method", "16", "8", "4", "own"]


def test_failures_are_prunings_own_first_and_families_take_turns(squares_dataset, records):
    failures = find_failures(squares_dataset, records, "random@4", count=4)
    assert [f.example.line for f in failures] == [1, 5, 4, 7]
    assert all(f.dense_right for f in failures)
    assert failures[0].answer == "wrong"
    assert failures[0].target_kept == 0.25
    last = find_failures(squares_dataset, records, "random@4")[-1]
    assert (last.example.line, last.dense_right) == (2, False)
    nothing = find_failures(squares_dataset, records, "atp@8")
    assert nothing == []
    assert write_failure_sheet(squares_dataset, nothing, "atp@8", squares_dataset.path) is None


def test_yaml_keeps_comments_and_other_sections(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text(
        "# a model\nexport:\n  checkpoint: weights  # here\n  alpha: 0.5  # measured\n\n"
        "other:\n  alpha: 9\n"
    )
    write_yaml(path, {"alpha": 0.75, "relevance_source": "negated", "keep_ratio": 0.25, "x": 1})
    assert path.read_text() == (
        "# a model\nexport:\n  relevance_source: negated\n  keep_ratio: 0.25\n"
        "  checkpoint: weights  # here\n  alpha: 0.75  # measured\n\nother:\n  alpha: 9\n"
    ) or path.read_text() == (
        "# a model\nexport:\n  keep_ratio: 0.25\n  relevance_source: negated\n"
        "  checkpoint: weights  # here\n  alpha: 0.75  # measured\n\nother:\n  alpha: 9\n"
    )
    (tmp_path / "other.yaml").write_text("model: x\n")
    with pytest.raises(ConfigError, match="must have a section `export`"):
        write_yaml(tmp_path / "other.yaml", {})


# A random model answers in scripts that the plotting font lacks.
@pytest.mark.filterwarnings("ignore:Glyph")
def test_the_command_writes_the_whole_report(tmp_path, squares, tiny_model, capsys):
    out = tmp_path / "report"
    arguments = ["evaluate", str(squares), "--model", str(tiny_model), "--out", str(out)]
    arguments += ["--methods", "atp", "--keep", "16,8,4", "--max-new-tokens", "2"]
    robust = ["--robustness", "--robustness-keep", "4", "--robustness-limit", "1"]
    assert main([*arguments, *robust, "--threads", "1"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["arms"]) == {
        "dense",
        *(f"{method}@{keep}" for method in ("atp", "random", "spatial") for keep in (8, 4)),
    }
    assert len(summary["robustness"]) == 26
    assert summary["run"]["complete"] is True
    assert summary["run"]["dataset"]["images"] == 6
    assert (out / "accuracy_vs_tokens.png").exists()
    assert "exact match" in capsys.readouterr().out
    # The same again is refused, resuming has nothing left to do.
    assert main([*arguments, *robust]) == 2
    assert "already holds records.jsonl" in capsys.readouterr().err
    assert main([*arguments, *robust, "--resume", "--no-plots"]) == 0
    again = json.loads((out / "summary.json").read_text())
    assert again["arms"] == summary["arms"]
    # The run is its own baseline.
    assert main([*arguments, *robust, "--resume", "--no-plots", "--baseline", str(out)]) == 0
    same = json.loads((out / "summary.json").read_text())["minus_baseline"]
    assert set(same) == set(summary["arms"])
    assert all(entry["value"] == 0.0 for entry in same.values())
    assert main([*arguments, "--resume", "--baseline", str(tmp_path)]) == 2
    assert "give the --out of an evaluation" in capsys.readouterr().err


def test_the_command_names_the_bad_line(squares, tiny_model, tmp_path, capsys):
    (squares / "questions.jsonl").write_text("")
    status = main(
        ["evaluate", str(squares), "--model", str(tiny_model), "--out", str(tmp_path / "o")]
    )
    assert status == 2
    assert "questions.jsonl: empty" in capsys.readouterr().err


def test_sweeping_defaults_states_and_writes_its_choice(tmp_path, squares, tiny_model, capsys):
    model_yaml = tmp_path / "model.yaml"
    model_yaml.write_text("export:\n  checkpoint: weights\n")
    out = tmp_path / "sweep"
    arguments = ["evaluate", str(squares), "--model", str(tiny_model), "--out", str(out)]
    arguments += ["--keep", "8,4", "--max-new-tokens", "2", "--limit", "3"]
    assert main([*arguments, "--sweep-defaults", "--write-defaults", str(model_yaml)]) == 0
    result = json.loads((out / "defaults.json").read_text())
    assert len(result["candidates"]) == 10  # five alphas, raw and negated
    # A random model is never right, so every setting is equally good and alpha 0.5 is taken.
    assert result["chosen"]["alpha"] == 0.5
    # The smallest of the two budgets loses nothing; it is doubled as a reserve: 8 of 16.
    assert result["chosen"]["keep_ratio"] == 0.5
    assert "paired bootstrap" in result["rule"]
    assert (out / "defaults.png").exists()
    assert "alpha: 0.5" in model_yaml.read_text()
    assert "chosen" in capsys.readouterr().out
    assert main([*arguments, "--write-defaults", str(model_yaml)]) == 2


def test_settings_of_two_models_are_compared_question_by_question(
    tmp_path, squares, tiny_model, capsys
):
    """A directory exported with another layer and relevance source joins the sweep."""
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["selection"]["relevance_source"] = "value"
    manifest["vision"]["embed_layer"] = -2
    (other / "manifest.json").write_text(json.dumps(manifest))
    out = tmp_path / "sweep"
    arguments = ["evaluate", str(squares), "--model", str(tiny_model), "--out", str(out)]
    arguments += ["--keep", "4", "--max-new-tokens", "2", "--limit", "3", "--no-plots"]
    assert main([*arguments, "--sweep-defaults", "--sweep-model", str(other)]) == 0
    result = json.loads((out / "defaults.json").read_text())
    assert {c["label"] for c in result["candidates"]} == {
        "raw, layers -2/-1",
        "negated, layers -2/-1",
        "value, layers -2/-2",
    }
    by_setting = {(c["relevance_source"], c["alpha"]): c["exact"] for c in result["candidates"]}
    # Both directories hold the same graphs, so raw and value differ in name alone.
    assert by_setting["raw", 1.0] == by_setting["value", 1.0]


@pytest.mark.parametrize(
    ("quality", "source", "alpha", "keep_ratio"),
    [
        # The better source wins, and twice the smallest budget that loses nothing.
        ({("negated", 0.5): 1.0}, "negated", 0.5, 0.5),
        # Equal settings: the alpha nearest one half.
        ({("raw", 0.25): 1.0, ("raw", 0.5): 1.0, ("raw", 1.0): 1.0}, "raw", 0.5, 0.5),
        # Everything loses: keep all tokens.
        ({("raw", 0.75): 0.4}, "raw", 0.75, 1.0),
    ],
)
def test_the_rule_chooses_by_evidence(squares_dataset, quality, source, alpha, keep_ratio):
    candidates = [
        Candidate(value, name, -2, -1)
        for name in ("raw", "negated")
        for value in (0.25, 0.5, 0.75, 1.0)
    ]
    examples = [e for e in squares_dataset.examples if e.family != "caption"]
    records = []
    for number, example in enumerate(examples):
        arms = {"dense": answer(example, True, ARMS[0])}
        for c in candidates:
            share = quality.get((c.relevance_source, c.alpha), 0.0)
            right = number < share * len(examples)
            arms |= {c.column(k): answer(example, right, Arm("atp", k)) for k in (8, 4)}
        records.append(Record(example.line, "clean", arms))
    result = decide(squares_dataset, records, candidates, [8, 4], 16, seed=0)
    chosen = result["chosen"]
    assert (chosen["relevance_source"], chosen["alpha"]) == (source, alpha)
    assert chosen["keep_ratio"] == keep_ratio


def test_evaluation_needs_neither_torch_nor_a_plotting_library():
    code = (
        "import sys, edge_atp.evaluation.run, edge_atp.cli.evaluate, edge_atp.cli.compare,"
        " edge_atp.evaluation.benchmarks.run, edge_atp.evaluation.lmms_eval_plugin.answerers;"
        "print([m for m in ('torch', 'matplotlib', 'lmms_eval') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
