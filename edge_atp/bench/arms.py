"""What is measured on the engine: dense, and the methods and budgets that the model can run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_atp.errors import ConfigError
from edge_atp.evaluation.arms import DENSE, Arm, dense_arm
from edge_atp.pipeline import runnable_methods
from edge_atp.runtime import in_llm
from edge_atp.runtime.manifest import Manifest
from edge_atp.types import PruneSpec

_NONE = "none"


@dataclass(frozen=True)
class OwnRatios(Arm):
    """A method that drops tokens by a rule of its own and takes no budget."""

    @property
    def name(self) -> str:
        """The method's."""
        return self.method

    def prune_spec(self) -> PruneSpec:
        """The request that asks for this arm."""
        return PruneSpec(method=self.method)


def plan_bench_arms(
    methods: Sequence[str], keeps: Sequence[int], manifest: Manifest
) -> tuple[Arm, ...]:
    """Dense, then every method at every budget below N.

    Args:
        keeps: visual tokens; budgets of N and more are the dense arm.
    Raises:
        ConfigError: a method is unknown, or this model directory cannot run it; lists those it can.
    """
    count = manifest.vision.num_patches
    runnable = runnable_methods(manifest)
    names = [name for name in dict.fromkeys(methods) if name not in (_NONE, DENSE)]
    if unknown := [name for name in names if name not in runnable]:
        raise ConfigError(
            f"--methods has {unknown[0]}, which this model directory does not run; it runs"
            f" {', '.join(runnable)}"
        )
    budgets = sorted({keep for keep in keeps if keep < count}, reverse=True)
    arms = [dense_arm(count)]
    for name in names:
        if in_llm.takes_budget(name):
            arms += [Arm(name, keep) for keep in budgets]
        else:
            arms.append(OwnRatios(name, count))
    return tuple(arms)
