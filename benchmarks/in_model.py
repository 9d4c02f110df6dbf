"""Cutting inside the model against cutting between encoder and language model, on one engine.

Alternating runs in one process, one thread by default, CPU time by stage: on a busy machine wall
times say little. "dense" and the methods between encoder and language model run the encoder in one
graph with fused attention; methods inside the encoder run it in groups.

Run: ``python -m benchmarks.in_model DIR [--keep 64 32] [--json OUT]``, DIR exported with
``--text-tower TOWER --vision-groups 1 --block-layers 1``. ``benchmarks.shapes`` makes checkpoints.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edge_atp.pruning import load
from edge_atp.pruning.base import InModelPruner
from edge_atp.runtime.depth import fit_options
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.in_model import InModelRunner, cuts_encoder
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.signals import read_signals
from edge_atp.types import PatchGrid

STAGES = ("vision_encode", "prune", "prefill", "decode")


class CpuClock:
    """Process CPU seconds by stage, back to back."""

    def __init__(self) -> None:
        self._last = time.process_time()
        self.seconds: dict[str, float] = defaultdict(float)

    def lap(self, stage: str) -> None:
        """Book the time since the last lap."""
        now = time.process_time()
        self.seconds[stage] += now - self._last
        self._last = now


class Contender:
    """One method at one budget; a call answers once."""

    def __init__(self, engine: Engine, method: str, num_kept: int, new_tokens: int) -> None:
        self.engine, self.num_kept, self.new_tokens = engine, num_kept, new_tokens
        manifest = engine.directory.manifest
        self.pruner = load(method, **fit_options(method, manifest))
        self.runner = InModelRunner(engine)
        grid = manifest.vision.patch_grid
        self.grid = PatchGrid(grid.rows, grid.cols)
        self.kv_bytes = self.num_rows = 0

    def __call__(self, pixels: Any, question: str) -> CpuClock:
        """Encode, choose, project, prefill, decode; the text embedding is not remembered."""
        engine, pruner = self.engine, self.pruner
        engine.forget_texts()
        clock = CpuClock()
        cut = pruner if isinstance(pruner, InModelPruner) else None
        if cut and cuts_encoder(cut):
            image = self.runner.encode(pixels, cut, self.num_kept, clock.lap)
            tokens = self.runner.project(image)
            prompt = engine.embed_prompt(question, [tokens])
            clock.lap("prefill")
            prompt = self.runner.add_language_stage(prompt, cut, question, [image])
            clock.lap("prune")
        else:
            vision = engine.encode_image(pixels)
            clock.lap("vision_encode")
            kept = np.arange(self.grid.num_patches)
            if not cut:
                signals = read_signals(engine, vision, question, self.grid, pruner)
                kept = np.asarray(pruner.select(signals, self.num_kept).kept_indices)
            clock.lap("prune")
            tokens = engine.project(vision.patch_features, kept)
            prompt = engine.embed_prompt(question, [tokens])
        engine.generate(
            prompt,
            max_new_tokens=self.new_tokens,
            cut=cut if cut and cut.site == "in_llm" else None,
            num_kept=self.num_kept,
            on_lap=clock.lap,
            on_prefill=lambda: clock.lap("prefill"),
        )
        clock.lap("decode")
        self.kv_bytes, self.num_rows = engine.kv_held_bytes, len(prompt.inputs_embeds)
        return clock


def measure(
    contenders: dict[str, Contender], pixels: Any, question: str, runs: int
) -> dict[str, dict[str, Any]]:
    """Medians of alternating runs, ms of CPU time by stage; one run of each warms up."""
    for contender in contenders.values():
        contender(pixels, question)
    laps: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(runs):
        for name, contender in contenders.items():
            laps[name].append(dict(contender(pixels, question).seconds))
    results = {}
    for name, contender in contenders.items():
        stages = {s: 1e3 * float(np.median([lap[s] for lap in laps[name]])) for s in STAGES}
        total = 1e3 * float(np.median([sum(lap.values()) for lap in laps[name]]))
        results[name] = {
            "cpu_ms": stages,
            "total_cpu_ms": total,
            "prompt_rows": contender.num_rows,
            "kv_mb": contender.kv_bytes / 1e6,
        }
    return results


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print the table; ratios are against the first row, dense."""
    dense = next(iter(results.values()))
    table = Table("method", *(f"{s} ms" for s in STAGES), "total ms", "dense / it", "KV MB")
    for name, row in results.items():
        cells = [f"{row['cpu_ms'][stage]:.1f}" for stage in STAGES]
        ratio = dense["total_cpu_ms"] / row["total_cpu_ms"]
        total, kv_mb = f"{row['total_cpu_ms']:.1f}", f"{row['kv_mb']:.2f}"
        table.add_row(name, *cells, total, f"{ratio:.2f}", kv_mb)
    Console(width=120).print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--methods", default="atp,evit,tome,ivtp,fastv,pyramiddrop,sparsevlm")
    parser.add_argument("--keep", type=int, nargs="+", default=[64])
    parser.add_argument("--question", default="where is the red box?")
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    directory = ModelDirectory.open(options.directory, verify=False)
    engine = Engine.load(directory, "ort-cpu", num_threads=options.threads)
    size, count = directory.manifest.preprocess.size, directory.manifest.vision.num_patches
    pixels = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
    contenders = {"dense": Contender(engine, "none", count, options.new_tokens)}
    for keep in options.keep:
        for method in options.methods.split(","):
            contenders[f"{method} {keep}"] = Contender(engine, method, keep, options.new_tokens)
    results = measure(contenders, pixels, options.question, options.runs)
    show(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
