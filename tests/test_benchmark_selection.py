"""The selection benchmark runs and writes what it measured (numbers are not judged here)."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.selection import Timing, misses, show_misses
from edge_atp.pruning import available

ROOT = Path(__file__).parents[1]


def test_writes_one_timing_a_method_and_budget(tmp_path: Path) -> None:
    out = tmp_path / "selection.json"
    sizes = ["--sizes", "16", "--shares", "0.25", "0.5", "--feature", "32", "--embed", "32"]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.selection", *sizes, "--repeats", "1", "--out", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    report = json.loads(out.read_text())
    measured = {(row["method"], row["num_kept"]) for row in report["timings"]}
    assert measured == {(name, kept) for name in available("post_encoder") for kept in (4, 8)}
    assert all(row["wall_ms"] > 0 for row in report["timings"])
    assert report["machine"]["widths"]["feature"] == 32


def test_says_who_misses_the_target() -> None:
    def timing(method: str, cpu_ms: float, num_kept: int = 64) -> Timing:
        return Timing(method, "numpy", 576, num_kept, 9.0, 9.0, 9.0, cpu_ms)

    slow, atp = timing("mmtok", 5.5), timing("atp", 0.21)
    fine = [timing("divprune", 5.0), timing("atp", 0.2), timing("mmtok", 50.0, num_kept=346)]
    assert misses([atp, slow, *fine]) == [slow, atp]
    console = Console(file=io.StringIO(), width=120)
    show_misses([atp, slow, *fine], console)
    assert "K = 64: mmtok (numpy) 5.50, atp (numpy) 0.21" in console.file.getvalue()
