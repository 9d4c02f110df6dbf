"""Is an answer right? Normalisation, exact match, and token F1 for long answers.

These are the rules for the labelled data sets of this package; the public benchmarks bring their
own (``edge_atp.evaluation.benchmarks``).
"""

from __future__ import annotations

import re
from collections import Counter

_SPACES = re.compile(r"\s+")
_AROUND_COMMA = re.compile(r"\s*([,;:])\s*")
_WORD = re.compile(r"[^\s,;:.!?]+")


def normalise_answer(text: str) -> str:
    """Lower case, single spaces, one space after commas, no full stop at the end.

    "Middle shelf ,slot 3." and "middle shelf, slot 3" are the same answer; articles and word
    order are not touched.
    """
    text = _SPACES.sub(" ", text.lower()).strip().rstrip(".!?").strip()
    return _AROUND_COMMA.sub(r"\1 ", text).strip()


def exact_match(answer: str, expected: str) -> float:
    """1.0 where the normalised answers are the same, else 0.0."""
    return float(normalise_answer(answer) == normalise_answer(expected))


def token_f1(answer: str, expected: str) -> float:
    """Harmonic mean of precision and recall over words, counted as a multiset.

    Returns:
        [0, 1]; 1.0 where both are empty, 0.0 where one is.
    """
    got, wanted = Counter(_words(answer)), Counter(_words(expected))
    if not got or not wanted:
        return float(got == wanted)
    common = sum((got & wanted).values())
    return 2.0 * common / (sum(got.values()) + sum(wanted.values()))


def score_answer(answer: str, expected: str, metric: str) -> float:
    """Score in [0, 1] by a family's metric, "exact" or "token_f1"."""
    return token_f1(answer, expected) if metric == "token_f1" else exact_match(answer, expected)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
