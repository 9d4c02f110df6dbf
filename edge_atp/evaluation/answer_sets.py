"""The closed answer set of a question: what could be answered to it at all.

A question's own ``choices`` where its label has them; else every answer that the data set gives
to its family, which is what a planner that knows its cell would offer. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge_atp.evaluation.labels import Example


class AnswerSets:
    """Closed answer sets of a data set.

    Args:
        examples: its questions.
        families: family -> metric; only those scored "exact" have a set, a caption has none.
        max_choices: a family with more different answers has none.
    """

    def __init__(
        self, examples: Sequence[Example], families: dict[str, str], max_choices: int
    ) -> None:
        answers: dict[str, set[str]] = {}
        for example in examples:
            if families[example.family] == "exact":
                answers.setdefault(example.family, set()).add(example.answer)
        self._sets = {
            family: tuple(sorted(known))
            for family, known in answers.items()
            if 2 <= len(known) <= max_choices
        }

    def of(self, example: Example) -> tuple[str, ...]:
        """The answers to choose from; empty where the question is asked open."""
        return example.choices or self._sets.get(example.family, ())
