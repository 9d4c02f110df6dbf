"""A model directory on devices that are not here; everything it writes is labelled projected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console

from edge_atp import __version__
from edge_atp.bench.devices import (
    BANDWIDTH_EFFICIENCY,
    COMPUTE_EFFICIENCY,
    LAYER_OVERHEAD_US,
    Device,
    named_device,
)
from edge_atp.bench.dimensions import model_spec, plan_of
from edge_atp.bench.fitted import fitted
from edge_atp.bench.plots import write_projection
from edge_atp.bench.questions import CAPTION, SHORT, Question
from edge_atp.bench.roofline import project_stages, weights_bytes
from edge_atp.bench.run import write_json
from edge_atp.evaluation.arms import Arm, plan_arms
from edge_atp.flops import MODELS, ModelSpec, account, named
from edge_atp.runtime.find_model import find_model
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.runtime.text import PromptTokenizer, load_tokenizer

JSON_FILE = "projection.json"
LABEL = "projected from published device figures, not measured"
_STAGES = ("vision", "text", "select", "project", "prefill", "decode")
_HEADS = (
    *("projected\n", "kept\ntokens", *(f"{stage}\nms" for stage in _STAGES)),
    *("total\nms", "first token\nms", "faster\nthan dense"),
)
# What a narrow terminal does without, the first ones first.
_FINE = ("select", "project", "text", "first token")
# A known architecture has no prompt template: its text as edge-atp flops assumes it.
_KNOWN_TEXT_TOKENS = 64


def project(
    model: str,
    devices: Sequence[str],
    console: Console,
    *,
    methods: Sequence[str],
    keeps: Sequence[int],
    precision: str,
    questions: Sequence[Question],
    tokens: dict[str, int],
    checkpoint: Path | None = None,
    out: Path | None = None,
    plots: bool = True,
) -> dict[str, Any]:
    """Project every method and budget on every device.

    Args:
        model: model directory, shipped name, or a known architecture of ``edge-atp flops``.
        devices: names in ``DEVICES``.
        methods: pruning methods between encoder and language model; empty for the model's own.
        precision: of the weights: fp16, int8 or int4.
        tokens: tokens generated, per kind of answer.
    Returns:
        The report; ``kind`` is "projected".
    Raises:
        ConfigError: unknown device, method, or a budget that the model cannot have.
    """
    chosen = [named_device(name.strip()) for name in devices]
    spec, source, text_tokens = _model(model, checkpoint, questions)
    methods = methods or _default_methods(model)
    arms = plan_arms(methods, [k for k in keeps if k <= spec.visual_tokens], spec.visual_tokens)
    report: dict[str, Any] = {
        **_preamble(spec, source, precision),
        "devices": {d.name: {**asdict(d), "sources": list(d.sources)} for d in chosen},
        "results": {
            device.name: {
                kind: _arms(device, spec, arms, text_tokens[kind], tokens[kind], precision)
                for kind in text_tokens
            }
            for device in chosen
        },
    }
    _print(report, console)
    if out:
        write_json(out / JSON_FILE, report)
        if plots:
            write_projection(report, out / "projection.png")
        console.print(f"report: {out}")
    return report


def _preamble(spec: ModelSpec, source: str, precision: str) -> dict[str, Any]:
    """What the report is about, and on what assumptions."""
    return {
        "format_version": 1,
        "kind": "projected",
        "label": LABEL,
        "edge_atp": __version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model": {
            "model_id": spec.name,
            "dimensions": source,
            "visual_tokens": spec.visual_tokens,
            "precision": precision,
            "weights_mb": round(weights_bytes(spec, precision) / 1e6, 1),
        },
        "assumptions": {
            "compute_efficiency": COMPUTE_EFFICIENCY,
            "bandwidth_efficiency": BANDWIDTH_EFFICIENCY,
            "layer_overhead_us": LAYER_OVERHEAD_US,
        },
    }


def _model(
    name: str, checkpoint: Path | None, questions: Sequence[Question]
) -> tuple[ModelSpec, str, dict[str, int]]:
    """Dimensions, where they are from, and the prompt's text tokens per kind of answer."""
    if name in MODELS:
        return named(name), "published configuration", {SHORT: _KNOWN_TEXT_TOKENS}
    directory = ModelDirectory.open(find_model(name).path)
    manifest = directory.manifest
    spec, source = model_spec(manifest, checkpoint)
    prompt = PromptTokenizer(load_tokenizer(directory.file("tokenizer")), manifest.prompt)
    found = {}
    for kind in (SHORT, CAPTION):
        asked = next((question for question in questions if question.kind == kind), None)
        if asked:
            found[kind] = len(prompt.encode(asked.text, 1).ids) - 1
    return spec, source, found


def _default_methods(model: str) -> tuple[str, ...]:
    if model in MODELS:
        return ("atp",)
    directory = ModelDirectory.open(find_model(model).path, verify=False)
    return (directory.manifest.selection.method,)


def _arms(
    device: Device,
    model: ModelSpec,
    arms: Sequence[Arm],
    text_tokens: int,
    answer_tokens: int,
    precision: str,
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for arm in arms:
        plan = plan_of(model, arm, text_tokens)
        costs = account(model, plan, text_tokens, answer_tokens, "engine")
        stages = project_stages(device, model, plan, costs, text_tokens, answer_tokens, precision)
        total = sum(stage.ms for stage in stages.values())
        found[arm.name] = {
            "visual_kept": arm.num_kept,
            "text_tokens": text_tokens,
            "answer_tokens": answer_tokens,
            "stages_ms": {name: round(stage.ms, 4) for name, stage in stages.items()},
            "bound": {name: stage.bound for name, stage in stages.items()},
            "total_ms": round(total, 4),
            "first_token_ms": round(total - stages["decode"].ms, 4),
            "flops": costs.total + costs.decode,
            "kv_mb": round(costs.kv_cache_bytes / 1e6, 3),
        }
    dense = found[arms[0].name]["total_ms"]
    for entry in found.values():
        entry["faster_than_dense"] = round(dense / entry["total_ms"], 3)
    return found


def _print(report: dict[str, Any], console: Console) -> None:
    model, assumed = report["model"], report["assumptions"]
    console.print(
        f"[bold]{model['model_id']}[/bold], {model['precision']}, {model['visual_tokens']} visual"
        f" tokens, weights {model['weights_mb']:g} MB   [bold yellow]PROJECTED[/bold yellow]"
    )
    console.print(
        f"{report['label']}: roofline at {assumed['compute_efficiency']:g} of peak compute and"
        f" {assumed['bandwidth_efficiency']:g} of bandwidth, {assumed['layer_overhead_us']:g} us a"
        " layer at least; a stage is limited by compute (c), memory (m) or overhead (o)"
    )
    console.print(f"dimensions: {model['dimensions']}")
    for name, kinds in report["results"].items():
        device = report["devices"][name]
        needed = model["weights_mb"] / 1e3
        for kind, rows in kinds.items():
            first = next(iter(rows.values()))
            cells = [_cells(arm, row) for arm, row in rows.items()]
            console.print(
                f"\n[bold]{device['title']}[/bold]: {kind}, {first['text_tokens']} text tokens,"
                f" {first['answer_tokens']} generated   (projected)"
            )
            console.print(fitted(console, _HEADS, [cells], _FINE))
        if needed > device["memory_gb"]:
            console.print(
                f"[red]the weights alone, {needed:.1f} GB, do not fit its {device['memory_gb']:g}"
                " GB[/red]"
            )


def _cells(arm: str, row: dict[str, Any]) -> list[str]:
    marks = {"compute": "c", "memory": "m", "overhead": "o"}
    stages = [
        f"{row['stages_ms'][stage]:.2f} {marks[row['bound'][stage]]}"
        if row["stages_ms"].get(stage)
        else "-"
        for stage in _STAGES
    ]
    times = [f"{row['total_ms']:.1f}", f"{row['first_token_ms']:.1f}"]
    return [arm, str(row["visual_kept"]), *stages, *times, f"{row['faster_than_dense']:.2f}"]
