"""What is measured on the engine: dense, and the methods and budgets that the model can run."""

from __future__ import annotations

from collections.abc import Sequence

from edge_atp.errors import ConfigError
from edge_atp.evaluation.arms import DENSE, Arm, plan_arms
from edge_atp.pipeline import runnable_methods
from edge_atp.runtime.cut_encoder import has_cut, split_method
from edge_atp.runtime.manifest import Manifest

_NONE = "none"


def plan_bench_arms(
    methods: Sequence[str], keeps: Sequence[int], manifest: Manifest
) -> tuple[Arm, ...]:
    """The arms of an evaluation, for budgets and methods that were not chosen for one model.

    Args:
        methods: "none" and "dense" are the dense arm, which is always in; "cut+NAME" is NAME behind
            the encoder's own cut.
        keeps: visual tokens; budgets of N and more are the dense arm.
    Raises:
        ConfigError: a method is unknown, or this model directory cannot run it; lists those it can.
    """
    count = manifest.vision.num_patches
    runnable = runnable_methods(manifest)
    names = [name for name in dict.fromkeys(methods) if name not in (_NONE, DENSE)]
    if unknown := [name for name in names if split_method(name)[1] not in runnable]:
        raise ConfigError(
            f"--methods has {unknown[0]}, which this model directory does not run; it runs"
            f" {', '.join(runnable)}{' and cut+NAME' if has_cut(manifest) else ''}"
        )
    return plan_arms(names, [keep for keep in keeps if keep < count], count, manifest)
