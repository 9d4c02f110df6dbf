"""Under what condition is a question asked: clean, a corrupted image, another wording?

A condition's name is "clean", "<corruption>@<severity>", or the name of a wording variant in the
data set ("paraphrase", "distractor").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_atp.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from edge_atp.evaluation.labels import Example

CLEAN = "clean"


@dataclass(frozen=True)
class Condition:
    """One way to disturb a question; the default disturbs nothing.

    corruption, severity: what is done to the image.
    variant: which other wording is asked.
    """

    corruption: str = ""
    severity: int = 0
    variant: str = ""

    @property
    def name(self) -> str:
        """As in records and reports."""
        if self.corruption:
            return f"{self.corruption}@{self.severity}"
        return self.variant or CLEAN

    def image(self, image: NDArray[np.uint8], seed: int, key: str) -> NDArray[np.uint8]:
        """The image under this condition, (height, width, 3) uint8 RGB."""
        if not self.corruption:
            return image
        return corrupt(image, self.corruption, self.severity, seed, key)

    def question(self, example: Example) -> str | None:
        """The wording under this condition; None where the example has no such variant.

        Of several wordings one is taken by line number, so that all of them occur.
        """
        if not self.variant:
            return example.question
        texts = example.variants.get(self.variant)
        return texts[example.line % len(texts)] if texts else None


def robustness_conditions(examples: tuple[Example, ...]) -> tuple[Condition, ...]:
    """Every corruption at every severity, and every wording variant that the examples have."""
    variants = sorted({name for example in examples for name in example.variants})
    corrupted = [Condition(corruption=c, severity=s) for c in CORRUPTIONS for s in SEVERITIES]
    return (*corrupted, *(Condition(variant=name) for name in variants))
