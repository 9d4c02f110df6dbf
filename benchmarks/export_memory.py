"""Peak memory of an export by depth: random checkpoints of LLaVA-1.5-7B's width.

Every depth is exported in a process of its own; its peak resident memory and time are measured,
and a line through the depths projects to the full 32 layers. Checkpoints are written one tensor at
a time, so this script needs less memory than what it measures. Needs the `export` extra, and disk
for twice the checkpoint (27 GB at 32 layers).

Run: ``python -m benchmarks.export_memory --layers 2 4 8 --folder DIR [--json OUT]``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file

from benchmarks.shapes import (
    LLAVA_7B,
    PROMPT,
    byte_tokenizer,
    llama_config,
    llava_config,
    save_processor,
)

FULL_DEPTH = LLAVA_7B.llm_layers
_SHARD_BYTES = 1 << 30


def write_checkpoint(layers: int, folder: Path) -> int:
    """Write a random float16 checkpoint shard by shard; returns its size in bytes."""
    shape = replace(LLAVA_7B, llm_layers=layers)
    config = llava_config(shape, llama_config(shape))
    with torch.device("meta"):
        model = transformers.LlavaForConditionalGeneration(config)
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    save_processor(folder, byte_tokenizer(), shape.image_size)
    rng = np.random.default_rng(0)
    shard: dict[str, np.ndarray] = {}
    total = number = 0
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        # Bytes of small positive float16 numbers: quick to make, never NaN.
        codes = rng.integers(0x1000, 0x2000, tuple(tensor.shape), np.uint16)
        shard[name] = codes.view(np.float16)
        total += codes.nbytes
        if sum(a.nbytes for a in shard.values()) > _SHARD_BYTES:
            save_file(shard, str(folder / f"model-{number:05d}.safetensors"))
            shard, number = {}, number + 1
    save_file(shard, str(folder / f"model-{number:05d}.safetensors"))
    return total


def measure(layers: int, folder: Path, precision: str) -> dict[str, Any]:
    """Export one depth; peak resident bytes and seconds of the exporting process."""
    checkpoint, out = folder / f"checkpoint-{layers}", folder / f"model-{layers}"
    size = write_checkpoint(layers, checkpoint)
    command = [sys.executable, "-m", "export", "--model", str(checkpoint), "--out", str(out)]
    command += ["--prompt", PROMPT, "--no-compare", "--precision", precision, "--overwrite"]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _high_water(process.pid))
        time.sleep(0.2)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"the export of {layers} layers failed")
    written = sum(file.stat().st_size for file in out.iterdir())
    shutil.rmtree(checkpoint)
    shutil.rmtree(out)
    return {
        "layers": layers,
        "checkpoint_bytes": size,
        "written_bytes": written,
        "peak_rss_bytes": peak,
        "seconds": seconds,
    }


def _high_water(pid: int) -> int:
    """Peak resident bytes of a process so far.

    Not ``ru_maxrss`` of the finished child: it starts at what the parent held when it was forked.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--folder", type=Path, required=True, help="on a disk with room")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = [measure(layers, options.folder, options.precision) for layers in options.layers]
    table = Table("layers", "checkpoint GB", "written GB", "peak RSS GB", "s")
    for row in rows:
        sizes = (row[n] / 1e9 for n in ("checkpoint_bytes", "written_bytes", "peak_rss_bytes"))
        table.add_row(str(row["layers"]), *(f"{v:.2f}" for v in sizes), f"{row['seconds']:.0f}")
    Console().print(table)
    if len(rows) > 1 and FULL_DEPTH not in options.layers:
        depths, peaks = zip(*((r["layers"], r["peak_rss_bytes"]) for r in rows), strict=True)
        slope, start = np.polyfit(depths, peaks, 1)
        projected = (start + slope * FULL_DEPTH) / 1e9
        print(f"projected peak at {FULL_DEPTH} layers: {projected:.2f} GB (a line through these)")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
