"""Data parallel over single-thread processes of one machine.

On a CPU that others use too, two processes with one thread each lose far less to waiting than one
process with two threads: they meet once a step instead of once an operation.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn


def rank() -> int:
    """Index of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
    dist.all_reduce(flat)
    flat /= world_size()
    start = 0
    for parameter in parameters:
        count = parameter.numel()
        parameter.grad = flat[start : start + count].view_as(parameter)
        start += count


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process, so that all stop at the same step."""
    if world_size() == 1:
        return flag
    value = torch.tensor(float(flag))
    dist.all_reduce(value)
    return bool(value > 0)


def _entry(index: int, processes: int, store: str, work: Callable[..., None], args: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=index, world_size=processes)
    try:
        work(*args)
    finally:
        dist.destroy_process_group()


def launch(work: Callable[..., None], args: tuple[Any, ...], processes: int) -> None:
    """Call ``work(*args)`` in ``processes`` processes that can average gradients."""
    if processes < 1:
        raise ValueError(f"processes is {processes}; give at least 1")
    if processes == 1:
        work(*args)
        return
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "rendezvous")
        mp.spawn(_entry, (processes, store, work, args), nprocs=processes)
