"""Optimisers and learning rate: Muon for the matrices of the blocks, AdamW for the rest."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from models.warehouse_tiny.config import StageConfig


def build_optimisers(
    modules: Iterable[nn.Module | nn.Parameter], stage: StageConfig
) -> list[torch.optim.Optimizer]:
    """Muon, scaled to AdamW's step size, for hidden matrices; AdamW for everything else."""
    matrices, others = [], []
    seen: set[int] = set()
    for module in modules:
        named = [("", module)] if isinstance(module, nn.Parameter) else module.named_parameters()
        for name, parameter in named:
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            hidden = ".layers." in name or "multi_modal_projector" in name
            hidden = hidden or name.startswith("layers.")
            (matrices if hidden and parameter.ndim == 2 else others).append(parameter)
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            others, lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=stage.weight_decay
        )
    ]
    if matrices:
        optimisers.append(
            torch.optim.Muon(
                matrices,
                lr=stage.learning_rate,
                weight_decay=stage.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimisers


def learning_rate(stage: StageConfig, step: int) -> float:
    """Linear warm-up, then a cosine from the peak to 2 % of it."""
    warm = min(1.0, (step + 1) / max(1, min(stage.warmup_steps, stage.steps // 4)))
    fall = 0.5 * (1 + math.cos(math.pi * min(step / stage.steps, 1.0)))
    return stage.learning_rate * warm * (0.02 + 0.98 * fall)
