"""The planner example against a scripted VLM node: what it acts upon, and what it refuses."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_msgs.msg import Answer
from edge_atp_ros.answer_text import (
    Item,
    Place,
    item_asked_for,
    parse_hazard,
    parse_item,
    parse_place,
)
from scripted_vlm import ScriptedVlm
from std_msgs.msg import String
from waiting import wait_until

WHERE = "where is the red box?"
PLANNER = [
    sys.executable, "-m", "edge_atp_ros.planner", "--ros-args", "-p", "period:=0.2",
    "-r", "~/query:=vlm_node/query", "-r", "~/answer:=vlm_node/answer",
    "-r", "~/patch_mask:=vlm_node/patch_mask",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("middle shelf, slot 3", Place("middle", 3)),
        (" Top shelf, slot 1 ", Place("top", 1)),
        ("not found", None),
        ("gripper", None),
        ("middle shelf, slot 5", None),
        ("middle shelf, slot 3 or 4", None),
        ("", None),
    ],
)
def test_places_are_parsed_exactly(text, place):
    assert parse_place(text) == place
    if place:
        assert parse_place(str(place)) == place


@pytest.mark.parametrize(
    ("text", "item"),
    [
        ("red box", Item("red", "box")),
        ("Blue Drum", Item("blue", "drum")),
        ("empty", None),
        ("box", None),
    ],
)
def test_items_are_parsed_exactly(text, item):
    assert parse_item(text) == item


def test_hazards_and_questions_are_parsed():
    assert parse_hazard("person") == "person"
    assert parse_hazard("none") is None
    assert item_asked_for("Where is the red box?") == Item("red", "box")
    assert item_asked_for("where is the exit?") is None


@pytest.fixture
def vlm():
    vlm = ScriptedVlm()
    vlm.texts = {WHERE: "middle shelf, slot 3", "what hazard is on the floor?": "none"}
    yield vlm
    vlm.close()


@pytest.fixture
def picks(vlm):
    return listen(vlm, "pick")


def listen(vlm, topic: str) -> list[str]:
    received: list[str] = []
    vlm.node.create_subscription(
        String, f"/planner/{topic}", lambda message: received.append(message.data), 10
    )
    return received


def start(start_process, *questions: str, max_answer_age_s: float = 0.0):
    parameters = ["-p", f"questions:={json.dumps(questions)}"]
    if max_answer_age_s:
        parameters += ["-p", f"max_answer_age:={max_answer_age_s}"]
    return start_process([*PLANNER, *parameters])


def test_it_picks_what_it_asked_for(vlm, picks, start_process):
    process = start(start_process, WHERE)
    process.wait_for("pick red box: middle shelf, slot 3")

    wait_until(lambda: picks)
    assert picks[0] == "pick red box: middle shelf, slot 3"
    ids = [query.query_id for query in vlm.queries]
    assert len(set(ids)) == len(ids)
    assert process.stop() == 0
    assert "Traceback" not in process.output()


def test_it_holds_while_a_person_is_on_the_floor(vlm, picks, start_process):
    vlm.texts = {"what hazard is on the floor?": "person"}
    process = start(start_process, "what hazard is on the floor?", WHERE)
    process.wait_for("what hazard is on the floor? -> person")
    vlm.texts[WHERE] = "middle shelf, slot 3"
    process.wait_for("hold, person on the floor: would pick red box")
    assert picks == []

    vlm.texts["what hazard is on the floor?"] = "none"
    process.wait_for("[planner]: pick red box: middle shelf, slot 3")


@pytest.mark.parametrize(
    ("age_s", "fields", "reason"),
    [
        (60, {"status": Answer.STATUS_FINAL, "confidence": 0.9}, "s old, more than 2 s"),
        (0, {"status": Answer.STATUS_FINAL, "confidence": 0.1}, "confidence 0.10 is below 0.5"),
        (0, {"status": Answer.STATUS_TRUNCATED, "confidence": 0.9}, "status 2"),
        (0, {"status": Answer.STATUS_ERROR, "error_msg": "no image yet"}, "no image yet"),
    ],
)
def test_it_refuses_to_act_on_a_bad_answer(vlm, picks, start_process, age_s, fields, reason):
    vlm.age_s, vlm.fields = age_s, fields
    refusals = listen(vlm, "refusal")
    # 2 s by default; where the age plays no part, answers may be late on a machine that is busy.
    process = start(start_process, WHERE, max_answer_age_s=0.0 if age_s else 60.0)
    process.wait_for(f"ignored: {reason}" if age_s == 0 else reason)
    assert picks == []
    # A question asked before both sides have matched has no answer.
    heard = wait_until(lambda: [text for text in refusals if "no answer" not in text], "a refusal")
    assert all(reason in text for text in heard)
