"""Does confidence mean probability? Reliability bins and expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import ShapeError

NUM_BINS = 10


@dataclass(frozen=True)
class Calibration:
    """Reliability of confidences in equal-width bins.

    ece: expected calibration error: mean over answers of |accuracy - confidence| of their bin.
    counts, accuracies, confidences: per bin, from [0, 1/M] to (1 - 1/M, 1]; None in empty bins.
    """

    ece: float
    counts: tuple[int, ...]
    accuracies: tuple[float | None, ...]
    confidences: tuple[float | None, ...]


def calibration(
    confidences: NDArray[np.float64], correct: NDArray[np.float64], num_bins: int = NUM_BINS
) -> Calibration | None:
    """Reliability of answers.

    Args:
        confidences: (Q,) in [0, 1]; NaN where an answer has none, which leaves it out.
        correct: (Q,) 1 where the answer is right.
        num_bins: M bins (m/M, (m+1)/M]; 0 belongs to the first.
    Returns:
        None where no answer has a confidence.
    Raises:
        ShapeError: lengths differ or a confidence is out of [0, 1].
    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3.
    """
    if confidences.shape != correct.shape:
        raise ShapeError(f"confidences {confidences.shape} and correct {correct.shape} differ")
    counted = ~np.isnan(confidences)
    confidences, correct = confidences[counted], correct[counted]
    if not len(confidences):
        return None
    if confidences.min() < 0.0 or confidences.max() > 1.0:
        raise ShapeError("confidences must be in [0, 1]")
    bins = np.clip(np.ceil(confidences * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    hits = np.bincount(bins, weights=correct, minlength=num_bins)
    mass = np.bincount(bins, weights=confidences, minlength=num_bins)
    return Calibration(
        ece=float(np.abs(hits - mass).sum() / len(confidences)),
        counts=tuple(int(n) for n in counts),
        accuracies=tuple(float(h / n) if n else None for h, n in zip(hits, counts, strict=True)),
        confidences=tuple(float(m / n) if n else None for m, n in zip(mass, counts, strict=True)),
    )
