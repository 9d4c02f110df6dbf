"""How long will an answer take? From the device's cost model, or else from the answers so far.

Needed to give up a question whose deadline cannot be met before work is wasted on it. Waiting is
not part of it.
"""

from __future__ import annotations

import statistics
import threading
from collections import OrderedDict, deque

from edge_atp.budget import plan
from edge_atp.cost_model import Work
from edge_atp.pipeline import Pipeline
from edge_atp.types import Policy, Query

_REMEMBERED_QUESTIONS = 256
_PER_QUESTION = 15
_RECENT = 31
_ENOUGH = 3
# A slow spell must not make all later questions look hopeless: one in so many is tried.
_TRY_EVERY = 8
# What stands for one question: its text, images, answers and pruning.
_Key = tuple[object, ...]


class Estimator:
    """Learns from complete answers; may be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_question: OrderedDict[_Key, deque[float]] = OrderedDict()
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._text_tokens: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._given_up = 0

    def expected_s(self, pipeline: Pipeline, query: Query, num_images: int) -> float | None:
        """Seconds from the start of inference to the complete answer.

        Returns:
            The cost model's prediction where there is one for such a question; else the median
            of the answers to the same question, else of all recent ones; None before those.
        """
        with self._lock:
            predicted_s = self._predicted_s(pipeline, query, num_images)
            if predicted_s is not None:
                return predicted_s
            seen = self._by_question.get(_key(query, num_images), ())
            seen = seen if len(seen) >= _ENOUGH else self._recent
            return statistics.median(seen) if len(seen) >= _ENOUGH else None

    def hopeless(self, pipeline: Pipeline, query: Query, num_images: int, left_s: float) -> bool:
        """Whether ``left_s`` seconds will not do; every eighth such question is tried all the
        same, so that a device that has become faster is noticed."""
        if left_s <= 0:
            return True
        if self._given_up >= _TRY_EVERY:
            return False
        expected_s = self.expected_s(pipeline, query, num_images)
        return expected_s is not None and expected_s > left_s

    def given_up(self) -> None:
        """A question was not tried, because of what was expected."""
        with self._lock:
            self._given_up += 1

    def tried(self) -> None:
        """Work on a question with a deadline begins."""
        with self._lock:
            self._given_up = 0

    def observe(self, query: Query, num_images: int, seconds: float) -> None:
        """Learn what a complete answer took."""
        key = _key(query, num_images)
        with self._lock:
            self._recent.append(seconds)
            seen = self._by_question.setdefault(key, deque(maxlen=_PER_QUESTION))
            seen.append(seconds)
            self._by_question.move_to_end(key)
            while len(self._by_question) > _REMEMBERED_QUESTIONS:
                self._by_question.popitem(last=False)

    def _predicted_s(self, pipeline: Pipeline, query: Query, num_images: int) -> float | None:
        latency = pipeline.latency
        # Turns behind others and closed answer sets are no work that the cost model knows.
        if latency.cost is None or query.conversation_id or query.choices:
            return None
        spec, config = query.prune, pipeline.config
        if spec.policy is Policy.LATENCY_BUDGET:
            return spec.latency_budget_s
        if spec.policy is Policy.NODE_DEFAULT and config.latency_budget_ms > 0:
            return config.latency_budget_ms / 1e3
        budget = plan(spec, pipeline.default_budget)
        if budget.policy is Policy.SCORE_MASS:  # how many tokens that is depends on the image
            return None
        longest = query.max_new_tokens or config.max_new_tokens
        work = Work(
            num_kept=budget.num_kept(pipeline.grid.num_patches),
            text_tokens=self._count_text_tokens(pipeline, query.text, num_images),
            answer_tokens=latency.expected_tokens(query.text, longest),
            num_images=num_images,
            num_encoded=num_images,
            dense=budget.policy is Policy.OFF,
        )
        return latency.predict_s(work, budget.method)

    def _count_text_tokens(self, pipeline: Pipeline, text: str, num_images: int) -> int:
        key = (text, num_images)
        if key not in self._text_tokens:
            ids = pipeline.engine.prompt_tokens(text, num_images).ids
            self._text_tokens[key] = len(ids) - num_images
            if len(self._text_tokens) > _REMEMBERED_QUESTIONS:
                self._text_tokens.popitem(last=False)
        return self._text_tokens[key]


def _key(query: Query, num_images: int) -> _Key:
    return (query.text, num_images, query.choices, query.max_new_tokens, query.prune)
