"""Ending early: before each stage and between tokens, with what there is."""

import itertools
import time

import pytest

from edge_atp.interruption import Interruption
from edge_atp.types import ConfidenceKind, Frame, Query, Status

LONG = Query("describe the scene.", query_id="q", max_new_tokens=12)


@pytest.fixture(scope="module")
def frame(cell_images):
    return Frame(cell_images[0])


def test_asked_once_true_stays_true():
    answers = iter([False, True, False])
    stop = Interruption(lambda: next(answers))
    assert [stop(), stop(), stop()] == [False, True, True]
    assert stop.status is Status.CANCELED


def test_the_caller_goes_before_the_deadline():
    stop = Interruption(lambda: True, deadline_s=time.perf_counter() - 1)
    assert stop()
    assert stop.status is Status.CANCELED


def test_without_reasons_it_never_stops():
    stop = Interruption()
    assert not stop()
    assert stop.status is None


@pytest.mark.parametrize("choices", [(), ("yes", "no")])
def test_a_passed_deadline_costs_no_work(pipeline, frame, choices, monkeypatch):
    for stage in ("encode_image", "encode_text", "project", "generate", "score_choices"):
        monkeypatch.setattr(pipeline.engine, stage, lambda *a, **k: pytest.fail("work was done"))
    query = Query("where is it?", query_id="q", choices=choices)
    answer = pipeline.answer(query, [frame], deadline_s=time.perf_counter())
    assert answer.status is Status.EXPIRED
    assert (answer.text, answer.query_id, answer.masks) == ("", "q", ())
    assert (answer.confidence, answer.confidence_kind) == (None, ConfidenceKind.NONE)
    assert answer.tokens.visual_kept == answer.tokens.generated == 0
    assert answer.times.vision_encode == answer.times.prefill == 0.0


@pytest.mark.parametrize(
    ("number", "stage", "after"),
    [(1, "vision_encode", "prune"), (2, "prune", "prefill")],
)
def test_stopped_between_stages(pipeline, frame, number, stage, after):
    asked = itertools.count()
    answer = pipeline.answer(LONG, [frame], should_stop=lambda: next(asked) >= number)
    assert answer.status is Status.CANCELED
    assert getattr(answer.times, stage) > 0.0 == getattr(answer.times, after)
    assert len(answer.masks) == (stage == "prune")


def test_a_second_image_is_not_encoded_after_the_stop(pipeline, frame):
    seen = []
    original = pipeline.engine.encode_image
    pipeline.engine.encode_image = lambda *args: seen.append(1) or original(*args)
    try:
        answer = pipeline.answer(LONG, [frame] * 3, should_stop=lambda: bool(seen))
    finally:
        del pipeline.engine.encode_image
    assert (len(seen), answer.status) == (1, Status.CANCELED)


@pytest.mark.parametrize("tokens", [1, 4])
def test_canceled_within_one_token_with_the_text_so_far(pipeline, frame, tokens):
    whole = pipeline.answer(LONG, [frame])
    partial = []
    answer = pipeline.answer(
        LONG, [frame], on_text=partial.append, should_stop=lambda: len(partial) >= tokens
    )
    assert answer.status is Status.CANCELED
    assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]
    assert len(partial) == tokens  # no further token was shown
    assert answer.text == partial[-1]
    assert whole.text.startswith(answer.text)
    assert answer.confidence_kind is ConfidenceKind.MEAN_TOKEN_PROB


def test_expired_between_tokens_with_the_text_so_far(pipeline, frame, monkeypatch):
    """The clock jumps past the deadline when the second token is shown."""
    now = [0.0]
    monkeypatch.setattr("edge_atp.interruption.time.perf_counter", lambda: now[0])
    partial = []

    def on_text(text):
        partial.append(text)
        now[0] = float(len(partial))

    answer = pipeline.answer(LONG, [frame], deadline_s=2.0, on_text=on_text)
    assert answer.status is Status.EXPIRED
    assert len(partial) == 2
    assert answer.text == partial[-1]


def test_choices_are_canceled_between_tokens(pipeline, frame):
    asked = itertools.count()
    query = Query("what is it?", choices=("a red box that fell", "a blue drum"))
    answer = pipeline.answer(query, [frame], should_stop=lambda: next(asked) >= 4)
    assert answer.status is Status.CANCELED
    assert (answer.text, answer.confidence, answer.choice_probs) == ("", None, ())
    # The cache is as after a prompt: the next answer is what it was.
    assert pipeline.answer(LONG, [frame]).token_ids == pipeline.answer(LONG, [frame]).token_ids
