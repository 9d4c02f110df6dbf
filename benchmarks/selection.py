"""Selection time of every interface-level method: N = 256, 576, 2880 and K = 10 to 60 %.

``OMP_NUM_THREADS=1 python -m benchmarks.selection --threads 1 --backends numpy torch`` prints all
tables of one core, says which methods miss the target, and writes ``out/selection.json``. Random
inputs of LLaVA-1.5's widths (features 1024, projected tokens 4096) unless told otherwise. Medians
over the repeats of one call of ``select`` after one warm-up; wall time and CPU time of the process
(the sum over threads). On a busy machine only the fastest CPU time says what the method costs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edge_atp.pruning import Pruner, available, load
from edge_atp.types import PatchGrid, VisualSignals

GRIDS = {256: PatchGrid(16, 16), 576: PatchGrid(24, 24), 2880: PatchGrid(60, 48)}
HEADS, TEXT_TOKENS = 16, 20

# N, K and the milliseconds a selection may take there; one method has a limit of its own.
TARGET_SIZE = (576, 64)
TARGET_MS = 5.0
TARGET_MS_OF = {"atp": 0.2}


@dataclass(frozen=True)
class Timing:
    """Medians and fastest calls of one method at one size, in milliseconds."""

    method: str
    backend: str
    num_patches: int
    num_kept: int
    wall_ms: float
    cpu_ms: float
    fastest_ms: float
    fastest_cpu_ms: float


def make_signals(num_patches: int, feature: int, embed: int, joint: int) -> VisualSignals:
    """Gaussian tokens and softmax attention, seeded by the size.

    Args:
        feature: width of the patch features, and of the keys with all heads side by side.
        embed: width of the language model.
        joint: width of CLIP's joint space.
    """
    rng = np.random.default_rng(num_patches)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    attention = np.exp(normal(HEADS, num_patches))
    attention /= attention.sum(axis=1, keepdims=True)
    return VisualSignals(
        patch_features=normal(num_patches, feature),
        image_embeds=normal(num_patches, embed),
        cls_attention=attention,
        patch_embeds=normal(num_patches, joint),
        text_embed=normal(joint),
        text_tokens=normal(TEXT_TOKENS, embed),
        patch_keys=normal(num_patches, feature),
        patch_grid=GRIDS.get(num_patches, PatchGrid(1, num_patches)),
    )


def to_torch(signals: VisualSignals, device: str) -> VisualSignals:
    """The same signals as torch tensors on ``device``."""
    import torch

    values = {name: getattr(signals, name) for name in signals.__dataclass_fields__}
    return VisualSignals(
        **{
            name: torch.from_numpy(value).to(device) if isinstance(value, np.ndarray) else value
            for name, value in values.items()
        }
    )


def measure(
    call: Callable[[], Any], repeats: int, budget_s: float, finish: Callable[[], None]
) -> tuple[float, float, float, float]:
    """Median wall, median CPU, fastest wall and fastest CPU time in ms.

    Stops early once ``budget_s`` seconds are spent, after three calls at least.
    """
    call()
    finish()
    wall: list[float] = []
    cpu: list[float] = []
    while len(wall) < repeats and (len(wall) < 3 or sum(wall) < budget_s):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        call()
        finish()
        cpu.append(time.process_time() - cpu_start)
        wall.append(time.perf_counter() - wall_start)
    return median(wall) * 1e3, median(cpu) * 1e3, min(wall) * 1e3, min(cpu) * 1e3


def run(args: argparse.Namespace) -> list[Timing]:
    """All timings asked for."""
    timings = []
    for num_patches in args.sizes:
        numpy_signals = make_signals(num_patches, args.feature, args.embed, args.joint)
        for backend in args.backends:
            signals, finish = numpy_signals, _nothing
            if backend != "numpy":
                signals, finish = to_torch(numpy_signals, args.device), _finish(args.device)
            for method in args.methods:
                pruner = load(method)
                for share in args.shares:
                    kept = max(1, round(share * num_patches))
                    times = measure(
                        _selection(pruner, signals, kept), args.repeats, args.budget, finish
                    )
                    timings.append(Timing(method, backend, num_patches, kept, *times))
    return timings


def show(timings: list[Timing], console: Console) -> None:
    """One table a backend and size: methods down, budgets across, wall (fastest CPU) in ms."""
    for backend, num_patches in sorted({(t.backend, t.num_patches) for t in timings}):
        rows = [t for t in timings if (t.backend, t.num_patches) == (backend, num_patches)]
        budgets = sorted({t.num_kept for t in rows})
        table = Table(title=f"{backend}, N = {num_patches}: median wall (fastest CPU) ms")
        table.add_column("method")
        for kept in budgets:
            table.add_column(f"K = {kept}", justify="right")
        for method in sorted({t.method for t in rows}):
            cells = {t.num_kept: t for t in rows if t.method == method}
            table.add_row(
                method,
                *(f"{cells[k].wall_ms:.2f} ({cells[k].fastest_cpu_ms:.2f})" for k in budgets),
            )
        console.print(table)


def misses(timings: list[Timing]) -> list[Timing]:
    """Timings at the target's size whose fastest CPU time is over the limit, slowest first."""
    sized = [t for t in timings if (t.num_patches, t.num_kept) == TARGET_SIZE]
    over = [t for t in sized if t.fastest_cpu_ms > TARGET_MS_OF.get(t.method, TARGET_MS)]
    return sorted(over, key=lambda t: -t.fastest_cpu_ms)


def show_misses(timings: list[Timing], console: Console) -> None:
    """One line: who is over the limit, if its size was measured."""
    if not any((t.num_patches, t.num_kept) == TARGET_SIZE for t in timings):
        return
    over = ", ".join(f"{t.method} ({t.backend}) {t.fastest_cpu_ms:.2f}" for t in misses(timings))
    console.print(
        f"over {TARGET_MS:g} ms (ATP {TARGET_MS_OF['atp']:g}) of CPU time at N = {TARGET_SIZE[0]},"
        f" K = {TARGET_SIZE[1]}: {over or 'none'}"
    )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selection", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 576, 2880])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 1 / 9, 0.2, 0.4, 0.6])
    parser.add_argument("--methods", nargs="+", default=list(available("post_encoder")))
    parser.add_argument("--backends", nargs="+", choices=["numpy", "torch"], default=["numpy"])
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--feature", type=int, default=1024, help="width of the patch features")
    parser.add_argument("--embed", type=int, default=4096, help="width of the language model")
    parser.add_argument("--joint", type=int, default=768, help="width of CLIP's joint space")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--budget", type=float, default=2.0, help="seconds a cell at most")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves them")
    parser.add_argument("--out", type=Path, default=Path("out/selection.json"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write."""
    args = parse(argv)
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    timings = run(args)
    console = Console()
    show(timings, console)
    show_misses(timings, console)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0],
        "blas_threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "numpy": np.__version__,
        "widths": {"feature": args.feature, "embed": args.embed, "joint": args.joint},
    }
    report = {"machine": machine, "timings": [asdict(timing) for timing in timings]}
    args.out.write_text(json.dumps(report, indent=1))


def _selection(pruner: Pruner, signals: VisualSignals, num_kept: int) -> Callable[[], Any]:
    return lambda: pruner.select(signals, num_kept)


def _nothing() -> None:
    pass


def _finish(device: str) -> Callable[[], None]:
    if device == "cpu":
        return _nothing
    import torch

    return torch.cuda.synchronize


if __name__ == "__main__":
    main()
