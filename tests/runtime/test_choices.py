"""Closed answer sets: probabilities against a full forward pass per prefix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edge_atp.errors import BudgetExceededError, InvalidQueryError
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.outputs import Prompt

CHOICES = ("red", "red box", "blue", "a very long answer about the top shelf", "yes")


@pytest.fixture(scope="module")
def prompt(engine: Engine, pixels: np.ndarray) -> Prompt:
    features = engine.encode_image(pixels).patch_features
    image = engine.project(features, np.arange(0, 256, 8))
    return engine.embed_prompt("what is on the shelf?", [image])


def by_full_passes(engine: Engine, prompt: Prompt, choice: str) -> float:
    """Log-probability with the whole sequence run anew for every token."""
    ids = engine._prompt.encode_choices([choice, "something else"])[0]
    embeds, total = prompt.inputs_embeds, 0.0
    for token in (*ids, engine.directory.manifest.llm.eos_token_ids[0]):
        logits = engine.last_logits(embeds).astype(np.float64)
        total += logits[token] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        embeds = np.concatenate([embeds, engine.embed_tokens([token])])
    return float(total)


def test_log_probabilities_equal_full_passes(engine: Engine, prompt: Prompt) -> None:
    scores = engine.score_choices(prompt, CHOICES)
    expected = [by_full_passes(engine, prompt, choice) for choice in CHOICES]
    np.testing.assert_allclose(scores.log_probs, expected, atol=1e-3)
    assert scores.probabilities.sum() == pytest.approx(1.0)
    assert scores.best == int(np.argmax(expected))
    assert 0 < scores.coverage <= 1 + 1e-6


def test_order_of_choices_does_not_matter(engine: Engine, prompt: Prompt) -> None:
    forward = engine.score_choices(prompt, CHOICES)
    backward = engine.score_choices(prompt, CHOICES[::-1])
    np.testing.assert_allclose(forward.probabilities, backward.probabilities[::-1], atol=1e-5)


def test_greedy_answer_wins_among_others(engine: Engine, prompt: Prompt) -> None:
    own = engine.generate(prompt, max_new_tokens=8)
    others = [c for c in CHOICES if c != own.text]
    if own.text:
        scores = engine.score_choices(prompt, [*others, own.text])
        assert scores.log_probs[-1] > np.median(scores.log_probs)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ((), "0 entries"),
        (("red",), "1 entries"),
        (("red", " "), r"choices\[1\] is empty"),
        (("red", "blue", " red "), r"choices\[2\] ' red ' is the same answer as 'red'"),
    ],
)
def test_bad_choices(
    engine: Engine, prompt: Prompt, choices: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InvalidQueryError, match=message):
        engine.score_choices(prompt, choices)


def test_answer_longer_than_the_cache(engine: Engine) -> None:
    llm = engine.directory.manifest.llm
    rows = np.zeros((llm.max_kv - 2, llm.hidden), np.float32)
    with pytest.raises(BudgetExceededError, match="max_kv"):
        engine.score_choices(Prompt(rows, len(rows), 0), ("yes", "no " * 20))


def test_what_is_bounded_is_bounded_from_above_and_the_best_is_exact(
    engine: Engine, prompt: Prompt
) -> None:
    exact = engine.score_choices(prompt, CHOICES)
    forwards = count_forwards(engine)
    bounded = engine.score_choices(prompt, CHOICES, negligible=0.5)
    spent = forwards()
    assert bounded.best == exact.best
    assert bounded.log_probs[exact.best] == pytest.approx(exact.log_probs[exact.best], abs=1e-9)
    assert (bounded.log_probs >= exact.log_probs - 1e-9).all()
    forwards = count_forwards(engine)
    engine.score_choices(prompt, CHOICES)
    assert spent < forwards()


def count_forwards(engine: Engine) -> Callable[[], int]:
    """How often the decoder ran from here to the call."""
    cache, runs = engine._kv_cache, [0]
    original = cache.forward

    def forward(rows: np.ndarray) -> np.ndarray:
        runs[0] += 1
        return original(rows)

    cache.forward = forward

    def stop() -> int:
        del cache.forward
        return runs[0]

    return stop


def test_stopped_scoring_leaves_the_prompt_in_the_cache(engine: Engine, prompt: Prompt) -> None:
    asked = iter([False, True])
    assert engine.score_choices(prompt, CHOICES, should_stop=lambda: next(asked)) is None
    assert engine._kv_cache.length == len(prompt.inputs_embeds)


def test_a_special_token_is_no_answer(engine: Engine, prompt: Prompt) -> None:
    with pytest.raises(InvalidQueryError, match=r"choices\[0\] contains the special token"):
        engine.score_choices(prompt, ("<image>", "red"))
