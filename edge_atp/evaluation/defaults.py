"""Choose a model's pruning defaults from evidence: alpha, relevance source, layer, keep ratio.

Run on a validation split, never on the one that is reported. The rule, stated with the result:

1. ATP is measured for every alpha x relevance source x budget. A setting's value is its mean exact
   match over the budgets of at most half of the tokens.
2. Settings whose value is not significantly below the best one (paired bootstrap over images, 95 %)
   are equally good; of those the alpha nearest 0.5 is taken, because it leans on neither signal
   alone, then the higher value.
3. The default budget is twice the smallest one whose loss against dense is below one point with
   95 % confidence, all tokens where none is: twice, as a reserve for pictures and questions unlike
   those of the validation set.

Relevance source ``value`` and another layer change what the exported graph computes: give a model
directory exported with each as ``more_models``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edge_atp.errors import ConfigError
from edge_atp.evaluation.arms import DENSE, Arm, dense_arm
from edge_atp.evaluation.bootstrap import ImageBootstrap
from edge_atp.evaluation.conditions import CLEAN
from edge_atp.evaluation.dataset import LabelledDataset
from edge_atp.evaluation.defaults_plot import write_defaults_plot
from edge_atp.evaluation.defaults_yaml import write_yaml
from edge_atp.evaluation.records import Record
from edge_atp.evaluation.run import Settings, answer_all, describe_run, open_both, write_json
from edge_atp.evaluation.scores import ScoreTable, build_table
from edge_atp.runtime.model_dir import ModelDirectory

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
METHOD = "atp"
MARGIN = 0.01  # exact match that pruning may cost
RESERVE = 2  # times the smallest budget that stays within it


@dataclass(frozen=True)
class Candidate:
    """A setting of ATP: fusion weight, relevance source and the layers the graph exposes."""

    alpha: float
    relevance_source: str
    feature_layer: int
    embed_layer: int

    @property
    def label(self) -> str:
        """For plots: everything but alpha."""
        return f"{self.relevance_source}, layers {self.feature_layer}/{self.embed_layer}"

    def arm(self, num_kept: int) -> Arm:
        """The arm that measures it."""
        return Arm(METHOD, num_kept, self.alpha, self.relevance_source)

    def column(self, num_kept: int) -> str:
        """Name of its column in the merged table."""
        return f"{self.label} {self.arm(num_kept).name}"


def sweep_defaults(
    settings: Settings,
    console: Console,
    write_to: Path | None = None,
    more_models: Sequence[str] = (),
    alphas: Sequence[float] = ALPHAS,
) -> dict[str, Any]:
    """Sweep, choose by the rule, write JSON and plot, print the YAML values.

    Args:
        settings: ``dataset`` is the validation split, ``keeps`` the budgets.
        write_to: model YAML whose ``export`` section gets the values; None only prints them.
        more_models: directories of the same model exported with another source or layer.
    Returns:
        The result as in ``defaults.json``.
    """
    merged: dict[int, Record] = {}
    candidates: list[Candidate] = []
    complete = True
    for number, model in enumerate((settings.config.model, *more_models)):
        # The choice is by short answers alone.
        own = replace(settings, config=replace(settings.config, model=model), long_limit=0)
        dataset, directory = open_both(own)
        num_patches = directory.manifest.vision.num_patches
        found = _candidates(directory, alphas)
        budgets = sorted({k for k in settings.keeps if k < num_patches}, reverse=True)
        arms = (dense_arm(num_patches), *(c.arm(k) for c in found for k in budgets))
        name = f"records-{number}.jsonl"
        records, done = answer_all(own, dataset, directory, arms, records_name=name)
        complete &= done
        _merge(merged, records, found, budgets)
        candidates += found
    if not budgets:
        raise ConfigError(f"--keep has no budget below the model's {num_patches} visual tokens")
    columns = [DENSE, *(c.column(k) for c in candidates for k in budgets)]
    everywhere = [r for r in merged.values() if all(column in r.arms for column in columns)]
    result = decide(dataset, everywhere, candidates, budgets, num_patches, settings.config.seed)
    result["run"] = describe_run(settings, dataset, directory, complete)
    write_json(settings.out / "defaults.json", result)
    if settings.plots:
        write_defaults_plot(result, settings.out / "defaults.png")
    _print(result, console)
    if write_to:
        write_yaml(write_to, result["chosen"])
        console.print(f"written to {write_to}")
    return result


def _candidates(directory: ModelDirectory, alphas: Sequence[float]) -> list[Candidate]:
    """Raw and negated come from one graph; a graph exported for ``value`` gives only that."""
    manifest = directory.manifest
    exported = manifest.selection.relevance_source
    sources = ("value",) if exported == "value" else ("raw", "negated")
    vision = manifest.vision
    return [
        Candidate(alpha, source, vision.feature_layer, vision.embed_layer)
        for source in sources
        for alpha in alphas
    ]


def _merge(
    merged: dict[int, Record],
    records: Iterable[Record],
    candidates: list[Candidate],
    budgets: list[int],
) -> None:
    """Add one model's columns to the records, by question."""
    for record in records:
        columns = {c.column(k): record.arms[c.arm(k).name] for c in candidates for k in budgets}
        known = merged.get(record.line)
        arms = known.arms if known else {DENSE: record.arms[DENSE]}
        merged[record.line] = Record(record.line, CLEAN, arms | columns)


def decide(
    dataset: LabelledDataset,
    records: list[Record],
    candidates: list[Candidate],
    budgets: list[int],
    num_patches: int,
    seed: int,
) -> dict[str, Any]:
    """Apply the rule.

    Args:
        dataset: the labels.
        records: with a column per candidate and budget, and the dense one.
        budgets: largest first.
        seed: of the bootstrap.
    Returns:
        ``candidates`` with their estimates, and ``chosen``.
    Raises:
        ConfigError: there is no record.
    """
    columns = [DENSE, *(c.column(k) for c in candidates for k in budgets)]
    table = build_table(dataset, records, CLEAN, columns)
    if table is None:
        raise ConfigError("no question was answered within the time cap; nothing to choose from")
    bootstrap = ImageBootstrap(table.image_index, seed=seed)
    exact = np.where(table.short[:, None], table.score, np.nan)
    low_budgets = [k for k in budgets if k <= num_patches / 2] or budgets
    means = np.stack(
        [exact[:, [table.column(c.column(k)) for k in low_budgets]].mean(1) for c in candidates], 1
    )
    values = bootstrap.estimates(means)
    best = max(range(len(candidates)), key=lambda i: values[i].value)
    behind = bootstrap.differences(means, best)
    equal = [i for i, delta in enumerate(behind) if delta.high >= 0.0 or i == best]
    chosen = min(equal, key=lambda i: (abs(candidates[i].alpha - 0.5), -values[i].value))
    smallest = _smallest_budget(table, bootstrap, candidates[chosen], budgets, num_patches)
    keep = min(num_patches, RESERVE * smallest)
    estimates = bootstrap.estimates(exact)
    return {
        "rule": (__doc__ or "").split("\n\n", 1)[1],
        "budgets": budgets,
        "num_patches": num_patches,
        "dense": estimates[0].to_json(),
        "candidates": [
            {
                **asdict(c),
                "label": c.label,
                "mean": values[i].to_json(),
                "behind_best": behind[i].to_json(),
                "equally_good": i in equal,
                "exact": {str(k): estimates[table.column(c.column(k))].to_json() for k in budgets},
                "grounding": _grounding(table, bootstrap, c, budgets),
            }
            for i, c in enumerate(candidates)
        ],
        "chosen": {**asdict(candidates[chosen]), "keep_ratio": round(keep / num_patches, 4)},
    }


def _grounding(
    table: ScoreTable, bootstrap: ImageBootstrap, candidate: Candidate, budgets: list[int]
) -> dict[str, Any]:
    kept = table.target_kept[:, [table.column(candidate.column(k)) for k in budgets]]
    return {
        str(k): estimate.to_json()
        for k, estimate in zip(budgets, bootstrap.estimates(kept), strict=True)
        if estimate.count
    }


def _smallest_budget(
    table: ScoreTable,
    bootstrap: ImageBootstrap,
    candidate: Candidate,
    budgets: list[int],
    num_patches: int,
) -> int:
    exact = np.where(table.short[:, None], table.score, np.nan)
    columns = [0, *(table.column(candidate.column(k)) for k in budgets)]
    losses = bootstrap.differences(exact[:, columns], 0)[1:]
    fine = [k for k, loss in zip(budgets, losses, strict=True) if loss.low >= -MARGIN]
    return min(fine, default=num_patches)


def _print(result: dict[str, Any], console: Console) -> None:
    budgets = [str(k) for k in result["budgets"]]
    table = Table("source, layers", "alpha", *budgets, "mean", "", title="ATP, exact match, %")
    for candidate in result["candidates"]:
        chosen = all(candidate[k] == v for k, v in result["chosen"].items() if k != "keep_ratio")
        mark = "chosen" if chosen else "equally good" if candidate["equally_good"] else ""
        cells = [f"{100 * candidate['exact'][k]['value']:.1f}" for k in budgets]
        mean = f"{100 * candidate['mean']['value']:.2f}"
        table.add_row(candidate["label"], f"{candidate['alpha']:g}", *cells, mean, mark)
    console.print(table)
    chosen = result["chosen"]
    console.print(f"dense: {100 * result['dense']['value']:.1f} %. For the model's YAML:")
    for name in ("alpha", "relevance_source", "keep_ratio"):
        console.print(f"  {name}: {chosen[name]}")
