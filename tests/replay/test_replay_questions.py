"""The YAML list of questions."""

import math

import pytest
import yaml
from replay_run import QUESTIONS

from edge_atp.errors import ConfigError
from edge_atp.replay.questions import ONCE, STANDING, load_questions
from edge_atp.types import Policy, PruneSpec


@pytest.fixture
def load(tmp_path):
    def load_text(text):
        path = tmp_path / "q.yaml"
        path.write_text(text, encoding="utf-8")
        return load_questions(path)

    return load_text


def test_the_shipped_questions_are_read():
    entries = yaml.safe_load(QUESTIONS.read_text(encoding="utf-8"))
    questions = load_questions(QUESTIONS)
    read = [
        {"at": q.at_s, "until": q.until_s, "ask": q.query.text, "expect": q.expect}
        for q in questions
    ]
    assert read == entries
    assert [q.query.query_id for q in questions] == [f"q{n + 1}" for n in range(len(entries))]


def test_an_entry_needs_only_its_question(load):
    (question,) = load("- ask: where is the red box?")
    assert (question.at_s, question.until_s) == (0.0, math.inf)
    assert (question.mode, question.max_rate_hz) == (STANDING, 0.0)
    assert question.cameras == ()
    assert question.expect is None
    assert question.query.prune == PruneSpec()


def test_every_field_is_read(load):
    (question,) = load(
        "- {ask: 'which?', query_id: a, cameras: [left, right], at: 1, until: 2.5, mode: once,\n"
        "   max_rate: 2, max_new_tokens: 7, choices: [x, y], expect: 3,\n"
        "   prune: {method: divprune, max_visual_tokens: 12, alpha: 0.25}}"
    )
    query = question.query
    assert (query.query_id, query.max_new_tokens, query.choices) == ("a", 7, ("x", "y"))
    assert question.cameras == ("left", "right")
    assert (question.mode, question.max_rate_hz, question.expect) == (ONCE, 2.0, "3")
    prune = query.prune
    assert prune.policy is Policy.TOKEN_BUDGET
    assert (prune.method, prune.max_visual_tokens, prune.alpha) == ("divprune", 12, 0.25)


@pytest.mark.parametrize(
    ("prune", "policy"),
    [
        ("{keep_ratio: 0.5}", Policy.KEEP_RATIO),
        ("{score_mass: 0.5}", Policy.SCORE_MASS),
        ("{policy: token_budget, max_visual_tokens: 3, keep_ratio: 0.5}", Policy.TOKEN_BUDGET),
        ("{policy: off}", Policy.OFF),
        ("{policy: 'OFF'}", Policy.OFF),
        ("{alpha: 0.5}", Policy.NODE_DEFAULT),
    ],
)
def test_the_policy_follows_from_the_value_given(load, prune, policy):
    (question,) = load(f"- ask: hi\n  prune: {prune}")
    assert question.query.prune.policy is policy


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected a list of questions, each with `ask`; got NoneType"),
        ("[]", "got an empty list"),
        ("ask: hi", "got dict"),
        ("- [", "cannot read questions from"),
        ("- hi", "entry 1: expected a mapping with ask, .*; got str"),
        ("- ask: ok\n- ask: ' '", "entry 2: ask is ' '; it must be a question"),
        ("- ask: [a]", "entry 1: ask is .*; it must be a text"),
        ("- {ask: hi, until: 1, at: 2}", "until is 1.0; it must be at least `at`, which is 2"),
        ("- {ask: hi, at: -1}", "at is -1; it must be a number, 0 or more"),
        ("- {ask: hi, at: .nan}", "at is nan"),
        ("- {ask: hi, rate: 1}", "unknown field rate; known: ask, query_id"),
        ("- {ask: hi, mode: twice}", "mode is 'twice'; it must be once or standing"),
        ("- {ask: hi, cameras: left}", "cameras is 'left'; it must be a list of texts"),
        ("- {ask: hi, expect: yes}", r"expect is True; it must be a text \(put it in quotes\)"),
        ("- {ask: hi, max_new_tokens: 1.5}", "max_new_tokens is 1.5; it must be a whole number"),
        ("- {ask: hi, prune: atp}", "entry 1, prune: expected a mapping"),
        ("- {ask: hi, prune: {ratio: 1}}", "entry 1, prune: unknown field ratio"),
        ("- {ask: hi, prune: {policy: half}}", "policy is 'half'; it must be one of node_default"),
        ("- {ask: hi, prune: {policy: latency_budget}}", "policy is 'latency_budget'"),
        ("- {ask: hi, prune: {policy: keep_ratio}}", "policy keep_ratio needs keep_ratio"),
        ("- {ask: hi, prune: {keep_ratio: 1, score_mass: 1}}", "exclude each other"),
        ("- {ask: a, query_id: q2}\n- ask: b", "entry 2: query_id 'q2' is used by an earlier"),
    ],
)
def test_a_mistake_is_named_with_file_and_entry(load, text, says):
    with pytest.raises(ConfigError, match=says) as raised:
        load(text)
    assert "q.yaml" in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read questions from .*absent\.yaml"):
        load_questions(tmp_path / "absent.yaml")
