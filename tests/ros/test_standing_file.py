"""The YAML list of standing questions: read as written, refused with file, entry and field."""

from __future__ import annotations

import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_msgs.msg import PruneConfig, Query
from edge_atp_ros.standing_file import read_standing_questions

from edge_atp.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    def write(text: str):
        path = tmp_path / "standing.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_every_field_is_read(write):
    (query,) = read_standing_questions(
        write(
            """
- query_id: hazard
  text: what hazard is on the floor?
  cameras: [front, left]
  max_rate: 2.5
  priority: 7
  deadline: 0.25
  max_frame_age: 1
  max_new_tokens: 16
  choices: [pallet, spill]
  prune: {policy: latency_budget, method: atp, latency_budget: 0.5, alpha: 0.25}
"""
        )
    )
    assert (query.query_id, query.text) == ("hazard", "what hazard is on the floor?")
    assert (query.mode, query.max_rate, query.priority) == (Query.MODE_STANDING, 2.5, 7)
    assert (list(query.cameras), list(query.choices)) == (["front", "left"], ["pallet", "spill"])
    assert (query.deadline.nanosec, query.max_frame_age.sec) == (250_000_000, 1)
    assert query.max_new_tokens == 16
    assert query.prune.policy == PruneConfig.POLICY_LATENCY_BUDGET
    assert (query.prune.method, query.prune.alpha) == ("atp", 0.25)
    assert query.prune.latency_budget.nanosec == 500_000_000


def test_a_question_needs_nothing_but_its_text(write):
    queries = read_standing_questions(write("- text: a\n- {text: b, query_id: named}\n"))
    assert [query.query_id for query in queries] == ["q1", "named"]
    assert queries[0].prune == PruneConfig()


BAD = {
    "not a list": ("text: a", "expected a list of questions, got dict"),
    "empty": ("", "expected a list of questions, got NoneType"),
    "no mapping": ("- why?", "question 1 is 'why\\?'; give a mapping of"),
    "no text": ("- query_id: a", "question 1: text is missing"),
    "unknown field": (
        "- {text: a, rate: 3}",
        "question 1: unknown field rate; known: query_id",
    ),
    "rate": (
        "- text: a\n- {text: b, max_rate: -1}",
        "question 2: max_rate is -1; give a number",
    ),
    "rate nan": ("- {text: a, max_rate: .nan}", "max_rate is nan"),
    "priority": (
        "- {text: a, priority: 256}",
        r"priority is 256; give an integer in \[0, 255\]",
    ),
    "priority true": ("- {text: a, priority: true}", "priority is True"),
    "deadline": ("- {text: a, deadline: soon}", "deadline is 'soon'; give a number"),
    "cameras": ("- {text: a, cameras: front}", "cameras is 'front'; give a list of texts"),
    "policy": (
        "- {text: a, prune: {policy: lots}}",
        "policy is 'lots'; choose one of keep_ratio",
    ),
    "prune field": ("- {text: a, prune: {keep: 1}}", "prune: unknown field keep"),
    "ratio": ("- {text: a, prune: {keep_ratio: 2}}", "keep_ratio is 2; give a number in"),
    "twice": (
        "- {text: a, query_id: x}\n- {text: b, query_id: x}",
        "x occurs more than once",
    ),
    "broken": ("- {text: a", "cannot be read"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_mistake_is_named(write, name):
    text, reason = BAD[name]
    with pytest.raises(ConfigError, match=reason) as caught:
        read_standing_questions(write(text))
    assert "standing.yaml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"standing_questions is .*nowhere\.yaml, which cannot"):
        read_standing_questions(tmp_path / "nowhere.yaml")
