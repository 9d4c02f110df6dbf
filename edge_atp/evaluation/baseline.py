"""Another run on the same questions: paired differences, arm by arm.

For example the int8 directory of a model against its fp32 one, or a new version against the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_atp.errors import DatasetError
from edge_atp.evaluation.bootstrap import ImageBootstrap
from edge_atp.evaluation.conditions import CLEAN
from edge_atp.evaluation.dataset import LabelledDataset
from edge_atp.evaluation.records import ArmAnswer, Record, read_records
from edge_atp.evaluation.scores import build_table

_EARLIER = "earlier "


def read_baseline(path: Path, dataset: LabelledDataset) -> list[Record]:
    """Records of an earlier run.

    Raises:
        DatasetError: there are none, or they answer other questions.
    """
    run, records = read_records(path)
    if run.get("dataset") != dataset.sha256:
        raise DatasetError(
            f"{path} answers another data set; a baseline needs the same questions.jsonl"
        )
    return records


def against_baseline(
    dataset: LabelledDataset,
    records: Sequence[Record],
    earlier: Sequence[Record],
    arms: Sequence[str],
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Exact match of each arm minus the same arm's in the baseline, on the questions of both.

    Args:
        dataset: the labels.
        records, earlier: this run's and the baseline's.
        arms: names; those that the baseline has not are left out.
        seed: of the bootstrap.
    Returns:
        Arm name -> estimate.
    """
    before = {record.line: record.arms for record in earlier if record.condition == CLEAN}
    now = {record.line: record for record in records if record.condition == CLEAN}
    lines = [line for line in now if line in before]
    names = [name for name in arms if lines and all(name in before[line] for line in lines)]
    if not names:
        return {}
    both = [replace(now[line], arms=_joined(now[line].arms, before[line], names)) for line in lines]
    table = build_table(dataset, both, CLEAN, [*names, *(_EARLIER + name for name in names)])
    assert table is not None  # there is at least one line
    score = np.where(table.short[:, None], table.score, np.nan)
    deltas = score[:, : len(names)] - score[:, len(names) :]
    bootstrap = ImageBootstrap(table.image_index, seed=seed)
    paired = bootstrap.differences(np.hstack([np.zeros_like(deltas[:, :1]), deltas]), 0)[1:]
    return {name: estimate.to_json() for name, estimate in zip(names, paired, strict=True)}


def _joined(
    now: dict[str, ArmAnswer], before: dict[str, ArmAnswer], names: Sequence[str]
) -> dict[str, ArmAnswer]:
    return {
        **{name: now[name] for name in names},
        **{_EARLIER + name: before[name] for name in names},
    }
