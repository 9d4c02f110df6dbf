"""The machine this runs on: names, cores, memory, load. Reads files, never runs a program.

What cannot be told is "" or None; nothing here raises.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")
_BOARD = Path("/proc/device-tree/model")  # "NVIDIA Jetson AGX Orin Developer Kit"
_GPUS = Path("/proc/driver/nvidia/gpus")
# Share of the cores that other work may keep busy before wall times stop meaning much.
_BUSY_SHARE = 0.3


@dataclass(frozen=True)
class Machine:
    """What a measurement has to say about where it was taken.

    board: name of a single-board computer such as a Jetson, "" elsewhere.
    cores: logical processors this process may use.
    load: load average of the last minute when it was read, None where unknown.
    """

    cpu: str
    cores: int
    memory_bytes: int | None
    board: str
    gpu: str
    system: str
    load: float | None

    @property
    def is_busy(self) -> bool:
        """Other work keeps so much of the machine busy that wall times are inflated."""
        return self.load is not None and self.load > _BUSY_SHARE * self.cores

    def to_json(self) -> dict[str, Any]:
        """Every field, and ``is_busy``."""
        return {**asdict(self), "is_busy": self.is_busy}


def read_machine() -> Machine:
    """This machine, now."""
    return Machine(
        cpu=cpu_name(),
        cores=_cores(),
        memory_bytes=_memory_bytes(),
        board=_text(_BOARD).strip("\0\n "),
        gpu=gpu_name(),
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        load=_load(),
    )


def device_name(backend: str) -> str:
    """What runs a backend: the board's name, the GPU's for CUDA and TensorRT, else the CPU's.

    The number of cores is part of a CPU's name: a container with fewer is another device.
    """
    board = _text(_BOARD).strip("\0\n ")
    if board:
        return board
    if ("cuda" in backend or backend.startswith("trt")) and gpu_name():
        return gpu_name()
    return f"{cpu_name() or platform.machine()}, {_cores()} cores"


@lru_cache(maxsize=1)
def cpu_name() -> str:
    """Model name of the processor, such as "AMD EPYC 9B14"."""
    for line in _text(_CPUINFO).splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return platform.processor()


@lru_cache(maxsize=1)
def gpu_name() -> str:
    """Model name of the first NVIDIA GPU, from its driver; "" without one."""
    for information in sorted(_GPUS.glob("*/information")):
        for line in _text(information).splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "Model":
                return value.strip()
    return ""


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int | None:
    for line in _text(_MEMINFO).splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
