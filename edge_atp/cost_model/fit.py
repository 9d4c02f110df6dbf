"""Measured stage times -> coefficients of a cost model."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_atp.cost_model.model import STAGE_TERMS, Work

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """Measured milliseconds of each stage for one piece of work."""

    work: Work
    stages_ms: Mapping[str, float]


def fit(samples: Sequence[Sample]) -> tuple[dict[str, tuple[float, ...]], dict[str, Any]]:
    """Least squares with nonnegative coefficients, stage by stage.

    Rows are weighted by 1 / time, so that short answers count as much as long ones.
    Returns:
        coefficients, and residuals as in ``CostModel``.
    """
    coefficients: dict[str, tuple[float, ...]] = {}
    predicted = np.zeros(len(samples))
    measured = np.zeros(len(samples))
    residuals: dict[str, Any] = {}
    for stage in STAGE_TERMS:
        terms = np.array([sample.work.terms(stage) for sample in samples], np.float64)
        times = np.array([sample.stages_ms.get(stage, 0.0) for sample in samples], np.float64)
        weights = 1.0 / np.maximum(times, 1e-3)
        found = nonnegative_least_squares(terms * weights[:, None], times * weights)
        coefficients[stage] = tuple(float(value) for value in found)
        residuals[stage] = _residuals(times, terms @ found)
        predicted += terms @ found
        measured += times
    residuals["total"] = _residuals(measured, predicted)
    return coefficients, residuals


def nonnegative_least_squares(terms: Floats, times: Floats) -> Floats:
    """x >= 0 that minimises |terms x - times|: the best of all supports (there are few terms).

    Args:
        terms: (samples, terms). times: (samples,).
    Returns:
        (terms,) float64.
    """
    # Columns of one size, or a square of thousands drowns the constant in rounding.
    scale = np.maximum(np.abs(terms).max(axis=0), 1e-300)
    scaled = terms / scale
    best, best_error = np.zeros(terms.shape[1]), float(np.sum(times**2))
    for count in range(1, terms.shape[1] + 1):
        for support in itertools.combinations(range(terms.shape[1]), count):
            chosen = list(support)
            solution = np.linalg.lstsq(scaled[:, chosen], times, rcond=None)[0]
            if (solution < 0).any():
                continue
            error = float(np.sum((scaled[:, chosen] @ solution - times) ** 2))
            if error < best_error * (1 - 1e-9):
                best, best_error = np.zeros(terms.shape[1]), error
                best[chosen] = solution
    result: Floats = best / scale
    return result


def _residuals(measured: Floats, predicted: Floats) -> dict[str, float]:
    error = predicted - measured
    # Stages of a few microseconds have no relative error worth a name.
    relative = np.abs(error) / np.maximum(measured, 0.05)
    return {
        "rms_ms": round(float(np.sqrt(np.mean(error**2))), 4),
        "max_relative": round(float(relative.max()), 4),
    }
