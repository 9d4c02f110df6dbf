"""Bootstrap confidence intervals and paired differences, resampling whole images.

Questions about one image share its difficulty, so images are drawn, not questions. Every arm is
evaluated on the same draws, which makes differences between arms paired. Knows nothing of what
the values mean.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import ShapeError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over ``count`` questions with its 95 % percentile interval.

    p_value: of a difference only: two-sided bootstrap, the null is no difference.
    """

    value: float
    low: float
    high: float
    count: int
    p_value: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class ImageBootstrap:
    """Draws of images, made once for all estimates of a report.

    Args:
        image_index: (Q,) int, the image of each question, 0 to I - 1.
        num_draws: bootstrap replicates.
        seed: fixes the draws.
    """

    def __init__(self, image_index: NDArray[np.int64], num_draws: int = 2000, seed: int = 0):
        self._image_index = image_index
        self._num_images = int(image_index.max()) + 1 if len(image_index) else 0
        if self._num_images == 0:
            raise ShapeError("nothing to resample: there is no question")
        rng = np.random.default_rng(seed)
        share = np.full(self._num_images, 1.0 / self._num_images)
        # (B, I): how often each image occurs in each draw.
        self._draws = rng.multinomial(self._num_images, share, size=num_draws).astype(np.float64)

    def means(self, values: Floats) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """Mean of each column, and the same of every draw.

        Args:
            values: (Q, A) one column per arm; NaN where a question does not count.
        Returns:
            (A,) means, (B, A) means of the draws, (A,) how many questions counted. A draw
            without any question is NaN.
        """
        counted = ~np.isnan(values)
        sums = self._per_image(np.where(counted, values, 0.0))
        counts = self._per_image(counted.astype(np.float64))
        with np.errstate(invalid="ignore"):
            means = sums.sum(axis=0) / counts.sum(axis=0)
            drawn = (self._draws @ sums) / (self._draws @ counts)
        return means, drawn, counted.sum(axis=0)

    def estimates(self, values: Floats) -> list[Estimate]:
        """One estimate per column of (Q, A) values; NaN entries do not count."""
        means, drawn, counts = self.means(values)
        lows, highs = _interval(drawn)
        return [
            Estimate(float(m), float(low), float(high), int(n))
            for m, low, high, n in zip(means, lows, highs, counts, strict=True)
        ]

    def differences(self, values: Floats, reference: int) -> list[Estimate]:
        """Each column minus column ``reference``, question by question.

        Args:
            values: (Q, A); where one of a pair is NaN the pair does not count.
        """
        return self._paired(values - values[:, [reference]])

    def _paired(self, deltas: Floats) -> list[Estimate]:
        means, drawn, counts = self.means(deltas)
        lows, highs = _interval(drawn)
        return [
            Estimate(float(means[a]), float(lows[a]), float(highs[a]), int(counts[a]), p)
            for a, p in enumerate(_p_values(drawn))
        ]

    def _per_image(self, values: Floats) -> Floats:
        totals = np.zeros((self._num_images, values.shape[1]))
        np.add.at(totals, self._image_index, values)
        return totals


def _interval(drawn: Floats) -> tuple[Floats, Floats]:
    if np.isnan(drawn).all(axis=0).any():  # an arm whose questions never count
        drawn = np.where(np.isnan(drawn).all(axis=0), 0.0, drawn)
    low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    return low, high


def _p_values(drawn: Floats) -> list[float]:
    """Two-sided; never below 1 / B, the resolution of B draws."""
    below, above = (drawn <= 0).mean(axis=0), (drawn >= 0).mean(axis=0)
    return [float(p) for p in np.clip(2.0 * np.minimum(below, above), 1.0 / len(drawn), 1.0)]
