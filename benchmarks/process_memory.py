"""What this process's resident memory is made of: files, the C heap in use and idle, Python.

Linux with glibc; elsewhere the C heap's figures are missing.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")


class _MallInfo2(ctypes.Structure):
    """glibc's ``struct mallinfo2`` (malloc.h, from 2.33), over all arenas."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """One look, after a collection; MB are 10^6 bytes, NaN where the platform does not tell.

    resident_mb: everything in RAM; anonymous_mb: of it what no file backs.
    heap_used_mb: given out by malloc, large blocks mapped on their own included.
    heap_idle_mb: freed blocks that malloc holds between others.
    python_blocks: blocks given out by Python's own allocator; python_objects: those its collector
        follows.
    """

    answers: int
    resident_mb: float
    anonymous_mb: float
    heap_used_mb: float
    heap_idle_mb: float
    python_blocks: int
    python_objects: int


def read(answers: int = 0) -> Reading:
    """Collect garbage and look."""
    gc.collect()
    status = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    resident, anonymous = (
        int(status[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "RssAnon")
    )
    used, idle = _heap_mb()
    return Reading(
        answers, resident, anonymous, used, idle, sys.getallocatedblocks(), len(gc.get_objects())
    )


def trim() -> None:
    """Let malloc give the pages of idle blocks back to the system."""
    trimming = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trimming:
        trimming(0)


def _heap_mb() -> tuple[float, float]:
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return float("nan"), float("nan")
    mallinfo2.restype = _MallInfo2
    info = mallinfo2()
    return (info.uordblks + info.hblkhd) / 1e6, info.fordblks / 1e6
