"""From a fresh interpreter to the first answer: what a robot waits for after a restart."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import Any

from edge_atp.errors import InferenceError

_TIMEOUT_S = 300

# Runs in the new interpreter. The picture is made without OpenCV: nothing but the pipeline counts.
_PROGRAM = """
import json, sys, time
started, cpu = time.perf_counter(), time.process_time()
from edge_atp.config import PipelineConfig
from edge_atp.pipeline import Pipeline
from edge_atp.types import Frame, Query
imported = time.perf_counter()
import numpy as np
model, engine, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
pipeline = Pipeline.load(PipelineConfig(model=model, engine=engine, num_threads=threads))
loaded = time.perf_counter()
frame = Frame(np.full((480, 640, 3), 128, np.uint8))
pipeline.answer(Query("what is in the picture?", max_new_tokens=8), [frame])
answered = time.perf_counter()
print(json.dumps({
    "import_s": imported - started, "load_s": loaded - imported,
    "first_answer_s": answered - loaded, "total_s": answered - started,
    "cpu_s": time.process_time() - cpu, "torch": "torch" in sys.modules,
}))
"""


def start_up(model: str, engine: str, threads: int, repeats: int = 3) -> dict[str, Any]:
    """Medians over fresh interpreters, seconds; the files are in the page cache from the second on.

    Raises:
        InferenceError: the program failed; carries the last line it wrote.
    """
    command = [sys.executable, "-c", _PROGRAM, model, engine, str(threads)]
    runs = []
    for _ in range(repeats):
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise InferenceError(f"start-up: a fresh interpreter failed: {last}")
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    names = [name for name in runs[0] if name != "torch"]
    found: dict[str, Any] = {n: round(statistics.median(r[n] for r in runs), 4) for n in names}
    return {**found, "repeats": repeats, "imports_torch": any(run["torch"] for run in runs)}
