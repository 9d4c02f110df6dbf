"""A latency budget -> the largest K that this device is predicted to answer within it.

Predictions come from the device's cost model and are corrected by what answers really took: one
factor per pruning method, smoothed and bounded. A question that was answered before is expected
to get an answer of about the same length again; a new one, a typical length of the calibration.
A budget that even the fewest measured tokens exceed gets those: answered late rather than not at
all, and the prediction says so.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

from edge_atp.cost_model import CostModel, Identity, Work, load_calibration
from edge_atp.errors import ArtifactError, ConfigError, InvalidQueryError
from edge_atp.types import Answer, Query, Status

# Weight of the newest answer; three quarters of a lasting change are seen after six answers.
_SMOOTHING = 0.2
# A factor outside is a wrong calibration, not a correction: a throttled device may take twice as
# long, and reuse between frames may save half.
_LOWEST, _HIGHEST = 0.25, 4.0
_REMEMBERED_QUESTIONS = 256
DENSE = "none"  # the method that keeps every token and scores none


class LatencyBudget:
    """Chooses K for one loaded pipeline. Safe to call from several threads.

    Args:
        cost: the device's cost model, None where there is none.
        reason: why there is none, for the error of a question that needs one.
    """

    def __init__(self, cost: CostModel | None, reason: str = "") -> None:
        self.cost = cost
        self.reason = reason or "no cost model of this device was given"
        self._lock = threading.Lock()
        self._corrections: dict[str, float] = {}
        self._answer_tokens: OrderedDict[str, float] = OrderedDict()

    def num_kept(self, seconds: float, question: str, work: Work, method: str) -> int:
        """Largest K, per image, whose prediction meets the budget.

        Args:
            seconds: from the start of inference to the complete answer.
            question: its text, to look up how long its answers were.
            work: the question; ``num_kept`` is ignored, ``answer_tokens`` is the longest answer
                allowed.
            method: pruning method that will run.
        Returns:
            K in [min_kept, N] of the calibration; min_kept where even that is predicted to take
            longer.
        Raises:
            InvalidQueryError: this device has no calibration; says how to make one.
        """
        if self.cost is None:
            raise InvalidQueryError(
                f"prune.policy LATENCY_BUDGET needs a cost model of this device: {self.reason};"
                " or ask with KEEP_RATIO or TOKEN_BUDGET"
            )
        expected = replace(work, answer_tokens=self.expected_tokens(question, work.answer_tokens))
        low, high = self.cost.min_kept, self.cost.max_kept
        # Predictions never fall with K, so a bisection finds the last one within the budget.
        while low < high:
            middle = (low + high + 1) // 2
            within = self._predict_s(replace(expected, num_kept=middle), method) <= seconds
            low, high = (middle, high) if within else (low, middle - 1)
        return low

    def expected_tokens(self, question: str, longest: int) -> int:
        """Tokens of the answer to expect: as before, else a typical answer; at most ``longest``."""
        with self._lock:
            typical = float(self.cost.answer_tokens) if self.cost else float(longest)
            return max(1, min(longest, round(self._answer_tokens.get(question, typical))))

    def predict_s(self, work: Work, method: str) -> float | None:
        """Predicted seconds from the start of inference to the complete answer, corrected by what
        answers took so far; None without a calibration."""
        return None if self.cost is None else self._predict_s(work, method)

    def observe(self, question: str, work: Work, method: str, seconds: float) -> None:
        """Learn from a complete answer.

        Args:
            work: as it turned out, with the tokens kept and generated.
            seconds: what it took, without waiting.
        """
        if self.cost is None or seconds <= 0:
            return
        with self._lock:
            before = self._answer_tokens.pop(question, float(work.answer_tokens))
            # Up at once, down slowly: a budget is broken by an answer longer than expected.
            smoothed = before + _SMOOTHING * (work.answer_tokens - before)
            self._answer_tokens[question] = max(smoothed, float(work.answer_tokens))
            if len(self._answer_tokens) > _REMEMBERED_QUESTIONS:
                self._answer_tokens.popitem(last=False)
            uncorrected = sum(self.cost.stages_ms(work).values()) / 1e3
            if uncorrected > 0:
                ratio = min(max(seconds / uncorrected, _LOWEST), _HIGHEST)
                old = self._corrections.get(method, 1.0)
                self._corrections[method] = old + _SMOOTHING * (ratio - old)

    def compare(self, query: Query, answer: Answer, longest: int, num_encoded: int) -> Answer:
        """The answer with the time it was predicted to take; what it took is learned from.

        Args:
            longest: most tokens the answer could have had.
            num_encoded: images that were encoded for it.
        """
        images = max(1, len(answer.masks))
        tokens = answer.tokens
        work = Work(
            num_kept=round(tokens.visual_kept / images),
            text_tokens=tokens.prompt_text,
            answer_tokens=self.expected_tokens(query.text, longest),
            num_images=images,
            num_encoded=num_encoded,
            dense=answer.method == DENSE,
        )
        predicted_s = self.predict_s(work, answer.method)
        # A closed answer set is scored, not generated: other work than the cost model's.
        if answer.status in (Status.FINAL, Status.TRUNCATED) and not query.choices:
            took_s = answer.times.total - answer.times.queue_wait
            done = replace(work, answer_tokens=tokens.generated)
            self.observe(query.text, done, answer.method, took_s)
        return replace(answer, predicted_s=predicted_s)

    def correction(self, method: str) -> float:
        """Factor that observed times put on predictions of a method; 1 before the first answer."""
        return self._corrections.get(method, 1.0)

    def _predict_s(self, work: Work, method: str) -> float:
        assert self.cost is not None
        return self.correction(method) * sum(self.cost.stages_ms(work).values()) / 1e3


def find_latency_budget(
    identity: Identity, path: str = "", required: bool = False
) -> LatencyBudget:
    """The calibration of what is running, from ``path`` or the usual place.

    Args:
        required: there must be one; without, questions with a latency budget are refused later.
    Raises:
        ConfigError: none where a path was given or one is required, or one of something else.
    """
    try:
        return LatencyBudget(load_calibration(identity, Path(path).expanduser() if path else None))
    except ArtifactError as error:
        if path or required:
            setting = "calibration" if path else "latency_budget_ms"
            raise ConfigError(f"{setting}: {error}") from error
        return LatencyBudget(None, str(error))
