"""The selection benchmark runs and writes what it measured (numbers are not judged here)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
