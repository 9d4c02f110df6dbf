"""Times of LLaVA-1.5-7B's pieces at real width, and a projection of them to full depth.

Random float16 checkpoints of a few layers are exported and run on the CPU in float32: the vision
encoder at 336 px, the text encoder (whole), selection, the projector on kept tokens, and the
language model's prefill and decode at several numbers of visual tokens, 2880 and 288 of
LLaVA-NeXT's tilings among them. Each depth is a model of its own; the line through the depths says
what one layer costs and what does not depend on depth, and is followed to 24 and 32 layers. Only
what stands under "measured" was measured.

Numbers of visual tokens take turns; medians, process CPU time unless said otherwise. Needs the
`export` extra, and per depth about 1 GB of memory and of disk a layer.

Run: ``python -m benchmarks.pieces --folder DIR [--depths 1 2 3] [--visual 576 64] [--json OUT]``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.shapes import LLAVA_7B, PROMPT, save
from edge_atp.pruning import load
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.manifest import FILE_NAME
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.runtime.outputs import Prompt
from edge_atp.types import PatchGrid, VisualSignals

DEPTHS = (1, 2, 3)
VISUAL = (576, 346, 144, 64, 2880, 288)
# Dense and pruned: 60 % of LLaVA-1.5's tokens (aim: 1.5 times), a tenth of LLaVA-NeXT's (aim: 0.40
# of dense).
PAIRS = ((576, 346), (2880, 288))
NEW_TOKENS = 8
QUESTION = "where is the red box?"
# The projector reads the vision encoder's last layer but one, so that two are the least.
_VISION_EXTRA = 1

Times = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Line:
    """Milliseconds as a function of layers, through the depths measured."""

    per_layer: float
    rest: float
    worst_error: float

    def at(self, layers: int) -> float:
        """Milliseconds at a depth."""
        return self.rest + self.per_layer * layers


def fit(layers: Sequence[int], milliseconds: Sequence[float]) -> Line:
    """Least squares; ``worst_error`` is the largest relative distance of a point from the line."""
    slope, start = np.polyfit(layers, milliseconds, 1)
    line = Line(float(slope), float(start), 0.0)
    errors = [abs(line.at(n) - ms) / ms for n, ms in zip(layers, milliseconds, strict=True)]
    return replace(line, worst_error=max(errors))


def make(depth: int, folder: Path, max_kv: int) -> Path:
    """A model directory of that depth, made once, from a checkpoint that is deleted again."""
    shape = replace(LLAVA_7B, vision_layers=depth + _VISION_EXTRA, llm_layers=depth)
    checkpoint, out = folder / f"checkpoint-{depth}", folder / f"model-{depth}"
    if (out / FILE_NAME).is_file():
        return out
    save(shape, checkpoint)
    command = [sys.executable, "-m", "export", "--model", str(checkpoint), "--out", str(out)]
    command += ["--text-tower", str(checkpoint / "text_tower"), "--prompt", PROMPT]
    command += ["--max-kv", str(max_kv), "--no-compare", "--overwrite"]
    subprocess.run(command, check=True)
    shutil.rmtree(checkpoint)
    return out


class Stopwatch:
    """Medians of laps by piece and clock."""

    def __init__(self) -> None:
        self._laps: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._last = (0.0, 0.0)

    def start(self) -> None:
        """Forget the time until now."""
        self._last = time.perf_counter(), time.process_time()

    def lap(self, piece: str, share: int = 1) -> None:
        """Book the time since the last lap; ``share`` equal parts of it count once."""
        now = time.perf_counter(), time.process_time()
        wall, cpu = (1e3 * (n - b) / share for n, b in zip(now, self._last, strict=True))
        self._laps[piece].append((wall, cpu))
        self._last = now

    def medians(self, skip: int = 1) -> Times:
        """Milliseconds; the first ``skip`` laps of each warmed up."""
        found = {}
        for piece, laps in self._laps.items():
            wall, cpu = np.median(laps[skip:], axis=0)
            found[piece] = {"wall": float(wall), "cpu": float(cpu)}
        return found


def measure(out: Path, visual: Sequence[int], text_tokens: int, runs: int, threads: int) -> Times:
    """Every piece of one model directory."""
    directory = ModelDirectory.open(out, verify=False)
    engine = Engine.load(directory, "ort-cpu", num_threads=threads)
    manifest, rng = directory.manifest, np.random.default_rng(0)
    size, width = manifest.preprocess.size, manifest.llm.hidden
    patches, grid = manifest.vision.num_patches, manifest.vision.patch_grid
    pixels = rng.normal(size=(1, 3, size, size)).astype(np.float32)
    features = rng.normal(size=(patches, manifest.vision.feature_dim)).astype(np.float32)
    pruner = load("atp")
    watch = Stopwatch()
    for _ in range(runs + 1):
        engine.forget_texts()
        watch.start()
        encoded = engine.encode_image(pixels)
        watch.lap("vision")
        text = engine.encode_text(QUESTION)
        watch.lap("text")
        signals = VisualSignals(
            cls_attention=encoded.cls_attention,
            patch_embeds=encoded.patch_embeds,
            text_embed=text,
            patch_grid=PatchGrid(grid.rows, grid.cols),
        )
        pruner.select(signals, patches // 9)
        watch.lap("select")
        for count in visual:
            watch.start()
            if count <= patches:
                engine.project(features, np.arange(count))
                watch.lap(f"project {count}")
            rows = rng.normal(scale=0.05, size=(text_tokens + count, width)).astype(np.float32)
            _generate(engine, Prompt(rows, text_tokens, count), watch, count)
    engine.close()
    return watch.medians()


def _generate(engine: Engine, prompt: Prompt, watch: Stopwatch, count: int) -> None:
    watch.start()
    answer = engine.generate(
        prompt, max_new_tokens=NEW_TOKENS, on_prefill=lambda: watch.lap(f"prefill {count}")
    )
    if len(answer.token_ids) != NEW_TOKENS:
        raise SystemExit(f"the answer ended after {len(answer.token_ids)} of {NEW_TOKENS} tokens")
    watch.lap(f"decode {count}", NEW_TOKENS - 1)


def lines(found: dict[int, Times], clock: str) -> dict[str, Line]:
    """A line for each piece; for those that have no layers to vary, the median alone."""
    result = {}
    for piece in next(iter(found.values())):
        times = [found[depth][piece][clock] for depth in found]
        if piece.startswith(("text", "select", "project")):
            result[piece] = Line(0.0, float(np.median(times)), 0.0)
            continue
        extra = _VISION_EXTRA if piece == "vision" else 0
        result[piece] = fit([depth + extra for depth in found], times)
    return result


def full_layers(piece: str) -> int:
    """Layers of the real model that a piece runs through."""
    return LLAVA_7B.vision_layers if piece == "vision" else LLAVA_7B.llm_layers


def language_ms(ms: Callable[[str], float], count: int) -> float:
    """Prefill and ``NEW_TOKENS`` tokens, the first of which prefill gives; ``ms`` of each piece."""
    return ms(f"prefill {count}") + (NEW_TOKENS - 1) * ms(f"decode {count}")


def ratios(found: dict[int, Times], fitted: dict[str, Line]) -> list[dict[str, Any]]:
    """Dense over pruned for each pair: prefill of a layer, and prefill with the answer's tokens."""

    def projected(piece: str) -> float:
        return fitted[piece].at(full_layers(piece))

    rows = []
    for dense, pruned in PAIRS:
        if not {f"prefill {dense}", f"prefill {pruned}"} <= set(fitted):
            continue
        measured = {}
        for depth, times in found.items():
            whole = [language_ms(lambda p, t=times: t[p]["cpu"], n) for n in (dense, pruned)]
            measured[depth] = whole[0] / whole[1]
        layer = [fitted[f"prefill {n}"].per_layer for n in (dense, pruned)]
        full = [language_ms(projected, n) for n in (dense, pruned)]
        rows.append(
            {
                "dense": dense,
                "pruned": pruned,
                "prefill_per_layer": layer[0] / layer[1],
                "prefill_and_tokens": measured,
                "projected": full[0] / full[1],
            }
        )
    return rows


def show(found: dict[int, Times], fitted: dict[str, Line], console: Console) -> None:
    """Print pieces, ratios and whole answers."""
    table = Table("CPU ms", *(f"measured, {d}" for d in found), "a layer", "rest", "error")
    table.add_column("projected, full depth")
    for piece, line in fitted.items():
        cells = [f"{found[depth][piece]['cpu']:.1f}" for depth in found]
        # Two points are always on a line.
        error = f"{line.worst_error:.0%}" if line.per_layer and len(found) > 2 else ""
        layer = f"{line.per_layer:.1f}" if line.per_layer else ""
        full = f"{line.at(full_layers(piece)):.1f}"
        table.add_row(piece, *cells, layer, f"{line.rest:.1f}", error, full)
    console.print(table)
    for row in ratios(found, fitted):
        measured = ", ".join(
            f"{1 / ratio:.2f} ({ratio:.2f} times) at {depth}"
            for depth, ratio in row["prefill_and_tokens"].items()
        )
        console.print(
            f"{row['dense']} -> {row['pruned']} visual tokens: prefill of one layer"
            f" {row['prefill_per_layer']:.2f} times faster; prefill and {NEW_TOKENS} tokens, pruned"
            f" / dense, measured: {measured} layers; projected {1 / row['projected']:.2f}"
        )
    for count in (int(piece.split()[1]) for piece in fitted if piece.startswith("project")):
        pieces = ("vision", "text", "select", f"project {count}")
        before = sum(fitted[piece].at(full_layers(piece)) for piece in pieces)
        language = language_ms(lambda p: fitted[p].at(full_layers(p)), count)
        console.print(
            f"projected, {count} visual tokens: {(before + language) / 1e3:.1f} s of CPU an answer,"
            f" {before / 1e3:.1f} of them before the language model"
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--folder", type=Path, required=True, help="on a disk with room")
    parser.add_argument("--depths", type=int, nargs="+", default=list(DEPTHS), help="two or more")
    parser.add_argument("--visual", type=int, nargs="+", default=list(VISUAL))
    parser.add_argument("--text-tokens", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="leave the model directories there")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if len(set(options.depths)) < 2 or min(options.depths) < 1:
        parser.error("--depths: a line needs two depths of 1 or more")
    options.folder.mkdir(parents=True, exist_ok=True)
    # The exporter's own golden answers ask longer questions.
    longest = max(*options.visual, LLAVA_7B.num_patches)
    max_kv = longest + max(options.text_tokens, 128) + NEW_TOKENS
    found: dict[int, Times] = {}
    for depth in sorted(set(options.depths)):
        out = make(depth, options.folder, max_kv)
        found[depth] = measure(
            out, options.visual, options.text_tokens, options.runs, options.threads
        )
        print(f"{depth} layers:", json.dumps(found[depth]), flush=True)
        if not options.keep:
            shutil.rmtree(out)
    fitted = lines(found, "cpu")
    show(found, fitted, Console(width=120))
    if options.json:
        record = {
            "threads": options.threads,
            "load": os.getloadavg(),
            "measured": found,
            "lines": {piece: asdict(line) for piece, line in fitted.items()},
            "ratios": ratios(found, fitted),
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
