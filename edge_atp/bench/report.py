"""Timed runs -> the numbers of a benchmark, as plain JSON.

Pruning's share (the same engine, dense over pruned) and the engine's (Hugging Face over the engine,
both dense) are ratios of their own, and short answers and captions are never averaged together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edge_atp.bench.dimensions import model_of, plan_of
from edge_atp.bench.hugging_face import NAME as HUGGING_FACE
from edge_atp.bench.measure import Run, Timed, ratios, spread
from edge_atp.bench.questions import KINDS
from edge_atp.bench.stages import STAGES
from edge_atp.errors import ConfigError
from edge_atp.evaluation.arms import DENSE, Arm
from edge_atp.flops import ModelSpec, account
from edge_atp.runtime.manifest import Manifest

_MB = 1e6
# The engine keeps keys and values in float32.
_KV_BYTES_PER_VALUE = 4
_CLOCKS: dict[str, Callable[[Run], float]] = {
    "wall": lambda run: run.compared_wall_ms,
    "cpu": lambda run: run.compared_cpu_ms,
}


def summarise(
    timed: Sequence[Timed],
    arms: Sequence[Arm],
    model: ModelSpec,
    precision: str,
    manifest: Manifest | None = None,
) -> dict[str, Any]:
    """Numbers of every kind of answer.

    Args:
        timed: all runs, those of the warm-up round too (for memory).
        arms: contenders on the engine; the first is dense.
        model: dimensions, for FLOPs and the KV cache.
        precision: of the engine; only float32 must give the original's very tokens.
        manifest: of the model directory, for where methods cut that cut inside the model.
    Returns:
        kind -> {contenders, pruning_share, engine_share, against_hugging_face, selection_share,
        identical_tokens}.
    """
    found: dict[str, Any] = {}
    for kind in KINDS:
        chosen = [entry for entry in timed if entry.question.kind == kind]
        if any(entry.round >= 0 for entry in chosen):
            found[kind] = _kind(chosen, arms, model, precision, manifest)
    return found


def _kind(
    timed: Sequence[Timed],
    arms: Sequence[Arm],
    model: ModelSpec,
    precision: str,
    manifest: Manifest | None,
) -> dict[str, Any]:
    names = [arm.name for arm in arms]
    present = {entry.contender for entry in timed if entry.round >= 0}
    contenders = {
        arm.name: {**_contender(timed, arm.name), **_compute(timed, arm, model, manifest)}
        for arm in arms
        if arm.name in present
    }
    if HUGGING_FACE in present:
        contenders[HUGGING_FACE] = _contender(timed, HUGGING_FACE)
    _relative_flops(contenders)
    pruned = [name for name in names if name != DENSE and name in present]
    entry: dict[str, Any] = {
        "contenders": contenders,
        "pruning_share": {name: _both(timed, DENSE, name) for name in pruned},
        "selection_share": _selection_share(contenders, pruned),
    }
    if HUGGING_FACE in present:
        entry["engine_share"] = _both(timed, HUGGING_FACE, DENSE)
        entry["against_hugging_face"] = {
            name: _both(timed, HUGGING_FACE, name) for name in names if name in present
        }
        entry["identical_tokens"] = {
            "dense": _identical(timed, DENSE, HUGGING_FACE),
            "expected": precision == "fp32",
        }
    return entry


def _both(timed: Sequence[Timed], slower: str, faster: str) -> dict[str, Any]:
    return {clock: ratios(timed, slower, faster, value) for clock, value in _CLOCKS.items()}


def _contender(timed: Sequence[Timed], name: str) -> dict[str, Any]:
    everything = [entry.run for entry in timed if entry.contender == name]
    runs = [entry.run for entry in timed if entry.contender == name and entry.round >= 0]
    generated = [len(run.token_ids) for run in runs]
    entry: dict[str, Any] = {
        "wall_ms": spread([run.wall_ms for run in runs]),
        "cpu_ms": spread([run.cpu_ms for run in runs]),
        "visual_kept": runs[0].visual_kept,
        "visual_total": runs[0].visual_total,
        "text_tokens": _median(run.text_tokens for run in runs),
        "answer_tokens": _median(generated),
        "peak_rss_mb": round(max(run.peak_bytes for run in everything) / _MB, 1),
        "answers": sorted({run.text for run in runs if run.text}),
        "deterministic": _deterministic(timed, name),
    }
    if runs[0].stages_ms:
        entry["stages_ms"] = {
            stage: spread([run.stages_ms[stage] for run in runs]) for stage in STAGES
        }
        entry["stages_cpu_ms"] = {
            stage: spread([run.stages_cpu_ms[stage] for run in runs]) for stage in STAGES
        }
        per_token = [run.stages_ms["decode"] / max(1, len(run.token_ids)) for run in runs]
        entry["decode_ms_per_token"] = spread(per_token)
        entry["tokens_per_s"] = round(1e3 / max(1e-9, _median(per_token)), 1)
        entry["first_token_ms"] = spread([run.wall_ms - run.stages_ms["decode"] for run in runs])
    return entry


def _compute(
    timed: Sequence[Timed], arm: Arm, model: ModelSpec, manifest: Manifest | None
) -> dict[str, Any]:
    """FLOPs and KV cache of the answer, for the text it was asked with."""
    runs = [entry.run for entry in timed if entry.contender == arm.name and entry.round >= 0]
    text = int(_median(run.text_tokens for run in runs))
    new = max(1, int(_median(len(run.token_ids) for run in runs)))
    held = int(_median(run.kv_bytes for run in runs))
    model = model_of(model, arm, manifest)
    try:
        costs = account(model, plan_of(model, arm, text, manifest), text, new, "engine")
    except ConfigError:  # the FLOPs of such a cut are not known; its times are
        return {"kv_mb": round(held / _MB, 3)}
    # As held when the answer was there; counted (at two bytes a value) where nothing says so.
    kv_bytes = held or costs.kv_cache_bytes // 2 * _KV_BYTES_PER_VALUE
    return {
        "flops": {
            "text_tokens": text,
            "answer_tokens": new,
            "convention": "engine",
            "vision": costs.vision,
            "text_encoder": costs.text_tower,
            "selection": costs.selection,
            "projector": costs.projector,
            "prefill": costs.prefill,
            "decode": costs.decode,
            "total": costs.total + costs.decode,
        },
        "kv_mb": round(kv_bytes / _MB, 3),
    }


def _relative_flops(contenders: dict[str, Any]) -> None:
    dense = contenders.get(DENSE)
    for entry in contenders.values():
        if dense and "flops" in entry:
            whole, prefill = dense["flops"]["total"], dense["flops"]["prefill"]
            entry["flops"]["of_dense"] = round(entry["flops"]["total"] / whole, 4)
            entry["flops"]["prefill_of_dense"] = round(entry["flops"]["prefill"] / prefill, 4)


def _selection_share(contenders: dict[str, Any], pruned: Sequence[str]) -> dict[str, float]:
    """CPU time of scoring and selecting over CPU time of dense prefill; the text encoder apart."""
    if DENSE not in contenders:
        return {}
    prefill = contenders[DENSE]["stages_cpu_ms"]["prefill"]["median"]
    return {
        name: round(contenders[name]["stages_cpu_ms"]["select"]["median"] / prefill, 5)
        for name in pruned
        if prefill > 0
    }


def _identical(timed: Sequence[Timed], one: str, other: str) -> bool:
    answers: dict[tuple[object, ...], dict[str, tuple[int, ...]]] = {}
    for entry in timed:
        if entry.contender in (one, other):
            key = (entry.picture, entry.question)
            answers.setdefault(key, {})[entry.contender] = entry.run.token_ids
    pairs = [found for found in answers.values() if len(found) == 2]
    return bool(pairs) and all(found[one] == found[other] for found in pairs)


def _deterministic(timed: Sequence[Timed], name: str) -> bool:
    answers: dict[tuple[object, ...], set[tuple[int, ...]]] = {}
    for entry in timed:
        if entry.contender == name:
            answers.setdefault((entry.picture, entry.question), set()).add(entry.run.token_ids)
    return all(len(found) == 1 for found in answers.values())


def _median(values: Any) -> float:
    return float(np.median(list(values)))
