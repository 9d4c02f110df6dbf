"""Score tables -> the numbers of a report, every one with its confidence interval.

The result is plain JSON; tables, plots, README and model card take their numbers from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from edge_atp.evaluation.arms import DENSE, Arm
from edge_atp.evaluation.bootstrap import ImageBootstrap
from edge_atp.evaluation.calibration import calibration
from edge_atp.evaluation.conditions import CLEAN
from edge_atp.evaluation.dataset import LabelledDataset
from edge_atp.evaluation.records import Record
from edge_atp.evaluation.scores import Floats, ScoreTable, build_table

FORMAT_VERSION = 1


def summarise(
    dataset: LabelledDataset,
    records: Iterable[Record],
    arms: Sequence[Arm],
    disturbed_arms: Sequence[Arm] = (),
    *,
    num_draws: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Numbers of one evaluation.

    Args:
        dataset: the labels.
        records: raw answers, clean ones and disturbed ones.
        arms: asked of clean images; the first is dense.
        disturbed_arms: asked under robustness conditions.
        num_draws, seed: of the bootstrap.
    Returns:
        JSON object: ``arms`` (per arm: exact, token_f1, families, grounding, agreement,
        calibration, latency_ms, minus_dense), ``paired`` (every pair of methods at one budget),
        ``robustness`` (condition -> arm -> exact, minus_clean).
    """
    records = list(records)
    table = build_table(dataset, records, CLEAN, [arm.name for arm in arms])
    if table is None:
        return {"format_version": FORMAT_VERSION, "num_questions": 0, "arms": {}}
    bootstrap = ImageBootstrap(table.image_index, num_draws, seed)
    return {
        "format_version": FORMAT_VERSION,
        "num_images": int(table.image_index.max()) + 1,
        "num_questions": len(table.lines),
        "bootstrap": {"draws": num_draws, "seed": seed, "unit": "image", "interval": 0.95},
        "arms": _arms(arms, table, bootstrap),
        "paired": _paired(arms, table, bootstrap),
        "robustness": _robustness(dataset, records, disturbed_arms, num_draws, seed),
    }


def _arms(
    arms: Sequence[Arm], table: ScoreTable, bootstrap: ImageBootstrap
) -> dict[str, dict[str, Any]]:
    exact = _only(table.score, table.short)
    columns: dict[str, Sequence[Any]] = {
        "exact": bootstrap.estimates(exact),
        "agreement": bootstrap.estimates(table.agreement),
        "grounding": bootstrap.estimates(table.target_kept),
    }
    if not table.short.all():
        columns["token_f1"] = bootstrap.estimates(_only(table.score, ~table.short))
    if DENSE in table.arms:
        columns["minus_dense"] = bootstrap.differences(exact, table.column(DENSE))
    families = {
        str(family): bootstrap.estimates(_only(table.score, table.families == family))
        for family in np.unique(table.families)
    }
    found = {}
    for index, arm in enumerate(arms):
        entry: dict[str, Any] = arm.to_json()
        for name, estimates in columns.items():
            if estimates[index].count:
                entry[name] = estimates[index].to_json()
        entry["families"] = {name: column[index].to_json() for name, column in families.items()}
        entry["calibration"] = _calibration(table, index)
        entry["latency_ms"] = _latency(table.latency_s[:, index])
        found[arm.name] = entry
    return found


def _paired(
    arms: Sequence[Arm], table: ScoreTable, bootstrap: ImageBootstrap
) -> dict[str, dict[str, Any]]:
    """Exact match of each arm minus each other arm at the same budget."""
    exact = _only(table.score, table.short)
    found = {}
    for index, arm in enumerate(arms):
        rivals = [i for i, other in enumerate(arms) if i > index and other.num_kept == arm.num_kept]
        if not rivals:
            continue
        deltas = bootstrap.differences(exact[:, [index, *rivals]], 0)[1:]
        for rival, delta in zip(rivals, deltas, strict=True):
            entry = delta.to_json()
            entry |= {"value": -delta.value, "low": -delta.high, "high": -delta.low}
            found[f"{arm.name} - {arms[rival].name}"] = entry
    return found


def _robustness(
    dataset: LabelledDataset,
    records: list[Record],
    arms: Sequence[Arm],
    num_draws: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Exact match under every condition, and its difference to the same questions clean."""
    names = [arm.name for arm in arms]
    clean = build_table(dataset, records, CLEAN, names)
    found: dict[str, dict[str, Any]] = {}
    for condition in dict.fromkeys(r.condition for r in records if r.condition != CLEAN):
        table = build_table(dataset, records, condition, names)
        if table is None or clean is None:
            continue
        bootstrap = ImageBootstrap(table.image_index, num_draws, seed)
        exact = _only(table.score, table.short)
        same = np.searchsorted(clean.lines, table.lines)
        before = _only(clean.score[same], table.short)
        columns = {
            "exact": bootstrap.estimates(exact),
            "minus_clean": bootstrap.estimates(exact - before),
            "grounding": bootstrap.estimates(table.target_kept),
        }
        if DENSE in names:
            columns["minus_dense"] = bootstrap.differences(exact, names.index(DENSE))
        found[condition] = {
            name: {what: column[i].to_json() for what, column in columns.items()}
            for i, name in enumerate(names)
        }
    return found


def _calibration(table: ScoreTable, column: int) -> dict[str, Any] | None:
    result = calibration(table.confidence[table.short, column], table.score[table.short, column])
    if result is None:
        return None
    return {
        "ece": result.ece,
        "counts": list(result.counts),
        "accuracies": list(result.accuracies),
        "confidences": list(result.confidences),
    }


def _latency(seconds: Floats) -> dict[str, float]:
    p50, p95 = np.percentile(1e3 * seconds, [50, 95])
    return {"mean": float(1e3 * seconds.mean()), "p50": float(p50), "p95": float(p95)}


def _only(values: Floats, counted: np.ndarray[Any, np.dtype[np.bool_]]) -> Floats:
    """Values with NaN in the rows that do not count."""
    return np.where(counted[:, None], values, np.nan)
