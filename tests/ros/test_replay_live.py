"""A bag played live into the node, its questions asked on its clock: `replay.launch.py`'s table."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_ros.asking import to_prune_config
from edge_atp_ros.convert import to_prune_spec
from edge_atp_ros.replaying import ReplayArguments, replay
from edge_atp_ros.runner import Runner

from edge_atp.cli.main import main
from edge_atp.replay.interfaces import load_typestore
from edge_atp.replay.questions import load_questions
from edge_atp.replay.results import load_results

SHARE = Path(__file__).resolve().parents[2] / "launch"
BAG = SHARE / "bags" / "warehouse_cell"
REFERENCE = BAG / "reference" / "result.mcap"


def play(tmp_path: Path, **arguments) -> tuple[int, str]:
    """Run the table until the questions have ended; returns their exit code and what they said."""
    table = replay(ReplayArguments(**arguments), SHARE)
    with Runner(table, tmp_path / "logs") as runner:
        end = time.monotonic() + 300.0
        while "bag_questions" not in runner.ended():
            assert time.monotonic() < end, runner.log("bag_questions")
            time.sleep(0.1)
        return runner.ended()["bag_questions"], runner.log("bag_questions")


HAZARD = "what hazard is on the floor?"


def write_queries(tmp_path: Path, *entries: dict) -> str:
    path = tmp_path / "q.yaml"
    path.write_text(yaml.safe_dump(list(entries)))
    return str(path)


def test_a_live_replay_answers_as_the_reference_does(tmp_path):
    # Long windows: a busy machine answers about few frames, but about some in each. The ids are
    # those of the reference, which asks the whole of questions.yaml.
    queries = write_queries(
        tmp_path,
        {"ask": HAZARD, "query_id": "q3", "at": 2.6, "until": 10.0, "expect": "none"},
        {"ask": HAZARD, "query_id": "q6", "at": 12.8, "until": 23.8, "expect": "person"},
    )
    result = tmp_path / "live.mcap"
    model = "warehouse_tiny:fp32"  # as the reference; int8 keeps a few other patches
    code, output = play(tmp_path, rate=2.0, queries=queries, out=str(result), model=model)

    assert code == 0, output
    differs = ["diff", str(REFERENCE), str(result), "--paired-only", "--tolerance-mask", "0.93"]
    assert main(differs) == 0
    answers = load_results(result, load_typestore()).answers
    assert {answer.query_id for answer in answers} == {"q3", "q6"}


def test_a_wrong_answer_and_a_question_without_one_fail_it(tmp_path):
    queries = write_queries(
        tmp_path,
        {"ask": HAZARD, "at": 2.6, "until": 10.0, "expect": "cone"},
        {"ask": "where is the red box?", "at": 1.0, "mode": "once"},
        {"ask": "what is the gripper holding?", "at": 90.0},
    )
    result = tmp_path / "live.mcap"
    code, output = play(tmp_path, rate=2.0, queries=queries, out=str(result))

    assert code == 1, output
    assert f"{HAZARD} none x" in output
    assert "(expected cone)" in output
    assert "where is the red box? gripper x1" in output
    assert "what is the gripper holding? no answer" in output
    assert result.is_file(), "what was answered is kept"


def test_a_questions_pruning_travels_unchanged(tmp_path):
    queries = tmp_path / "q.yaml"
    entries = [
        {"ask": "a?", "prune": {"keep_ratio": 0.25, "alpha": 0.5, "method": "atp"}},
        {"ask": "b?", "prune": {"policy": "off"}},
        {"ask": "c?", "prune": {"max_visual_tokens": 9}},
        {"ask": "d?"},
    ]
    queries.write_text(yaml.safe_dump(entries))
    for question in load_questions(queries):
        assert to_prune_spec(to_prune_config(question.query.prune)) == question.query.prune
