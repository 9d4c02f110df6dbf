"""The questions shipped with the recorded bag, against the scenes it was recorded from."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

pytest.importorskip("rosbags", reason="needs the bags extra")

from models.warehouse_tiny.record_bag import CHECKS, DURATION_S, FRAME_RATE_HZ, SEED
from models.warehouse_tiny.sequence import sequence

QUESTIONS = Path(__file__).resolve().parents[2] / "launch/bags/warehouse_cell/questions.yaml"


@pytest.fixture(scope="module")
def states():
    return list(sequence(SEED, FRAME_RATE_HZ * DURATION_S + 1))


@pytest.mark.parametrize("number", range(len(CHECKS)))
def test_the_expected_answer_is_true_in_every_frame_of_its_window(states, number):
    check, entry = CHECKS[number], yaml.safe_load(QUESTIONS.read_text())[number]

    assert (entry["at"], entry["until"], entry["ask"]) == (check.at, check.until, check.text)
    first, last = (round(second * FRAME_RATE_HZ) for second in (check.at, check.until))
    assert {check.answer(state) for state in states[first : last + 1]} == {entry["expect"]}


def test_the_questions_see_the_scene_change():
    answers: dict[str, set[str]] = {}
    for entry in yaml.safe_load(QUESTIONS.read_text()):
        answers.setdefault(entry["ask"], set()).add(entry["expect"])
    assert len(CHECKS) >= 6
    assert sum(len(expected) > 1 for expected in answers.values()) >= 2
