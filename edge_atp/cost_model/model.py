"""The cost model itself: tokens in, milliseconds of each stage out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

# Terms of each stage, in the order in which stages run. S is the prompt's length, text and visual
# tokens; A the tokens of the answer. A decode step attends to S + A / 2 tokens on average.
STAGE_TERMS: Mapping[str, tuple[str, ...]] = {
    "preprocess": ("images",),
    "vision": ("images",),
    "text": ("1",),
    "select": ("images",),
    "project": ("images", "visual"),
    "prefill": ("1", "S", "S^2"),
    "decode": ("A", "A*(S+A/2)"),
}


@dataclass(frozen=True)
class Work:
    """What one question makes a model do.

    num_kept: visual tokens kept of each image.
    text_tokens: prompt tokens that are not visual.
    answer_tokens: generated tokens.
    num_images: images of the question; num_encoded of them are not encoded yet.
    dense: nothing is scored or selected.
    """

    num_kept: int
    text_tokens: int
    answer_tokens: int
    num_images: int = 1
    num_encoded: int = 1
    dense: bool = False

    def terms(self, stage: str) -> tuple[float, ...]:
        """Values of the stage's terms, as in ``STAGE_TERMS``."""
        if self.dense and stage in ("text", "select"):
            return (0.0,)
        images = self.num_encoded if stage in ("preprocess", "vision") else self.num_images
        visual = self.num_kept * self.num_images
        length, answer = visual + self.text_tokens, self.answer_tokens
        values = {
            "1": 1.0,
            "images": float(images),
            "visual": float(visual),
            "S": float(length),
            "S^2": float(length) ** 2,
            "A": float(answer),
            "A*(S+A/2)": answer * (length + answer / 2),
        }
        return tuple(values[name] for name in STAGE_TERMS[stage])


@dataclass(frozen=True)
class Identity:
    """What a calibration is valid for; all of it must match.

    model_sha256: of ``manifest.json``, which holds the hash of every other file.
    num_threads: as configured, 0 where the backend decides.
    """

    model_id: str
    model_sha256: str
    backend: str
    device: str
    num_threads: int = 0


@dataclass(frozen=True)
class CostModel:
    """A fitted cost model.

    coefficients: milliseconds per term of each stage.
    min_kept, max_kept: range of visual tokens per image that was measured; max_kept is N.
    answer_tokens: length of a typical answer, for questions that were never answered before.
    residuals: per stage and "total": root mean square in ms, and the largest relative error.
    created: date of the measurement, ISO 8601.
    """

    identity: Identity
    coefficients: Mapping[str, tuple[float, ...]]
    min_kept: int
    max_kept: int
    answer_tokens: int
    method: str
    residuals: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    created: str = ""

    def stages_ms(self, work: Work) -> dict[str, float]:
        """Predicted milliseconds of each stage."""
        return {
            stage: math.fsum(c * t for c, t in zip(values, work.terms(stage), strict=True))
            for stage, values in self.coefficients.items()
        }

    def predict_ms(
        self,
        prompt_tokens: int,
        answer_tokens: int,
        num_kept: int,
        *,
        num_images: int = 1,
        num_encoded: int = 1,
    ) -> float:
        """Predicted milliseconds from the start of inference to the complete answer.

        Args:
            prompt_tokens: text tokens of the prompt, visual ones not counted.
            answer_tokens: tokens that will be generated.
            num_kept: visual tokens kept of each image.
            num_images, num_encoded: images of the question, and those not encoded yet.
        """
        work = Work(num_kept, prompt_tokens, answer_tokens, num_images, num_encoded)
        return math.fsum(self.stages_ms(work).values())
