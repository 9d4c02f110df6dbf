"""What is compared: one arm is a pruning method with a budget, "dense" is the model untouched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edge_atp import pruning
from edge_atp.early_cut import require_behind_cut
from edge_atp.errors import ConfigError
from edge_atp.pruning.base import InModelPruner
from edge_atp.runtime.cut_encoder import most_kept, require_cut, split_method
from edge_atp.runtime.in_llm import takes_budget
from edge_atp.runtime.in_model import in_model_methods, require_graphs
from edge_atp.runtime.manifest import Manifest
from edge_atp.signals import why_not_method
from edge_atp.types import Policy, PruneSpec

DENSE = "dense"
# What every method has to beat; in every report.
BASELINES = ("random", "spatial")


@dataclass(frozen=True)
class Arm:
    """One column of a report.

    method: name of a pruning method, or "dense".
    num_kept: visual tokens kept per image; N for dense, 0 for a method that takes no budget.
    alpha, relevance_source: override the model's own; None and "" leave them.
    closed: questions that have a closed answer set are scored over it, not answered freely.
    """

    method: str
    num_kept: int
    alpha: float | None = None
    relevance_source: str = ""
    closed: bool = False

    @property
    def name(self) -> str:
        """Such as "dense", "atp@64", "atp[alpha=0.25,raw]@64"; "vtw", which takes no budget."""
        if self.method == DENSE:
            return DENSE
        options = [] if self.alpha is None else [f"alpha={self.alpha:g}"]
        options += [self.relevance_source] if self.relevance_source else []
        suffix = f"[{','.join(options)}]" if options else ""
        budget = f"@{self.num_kept}" if self.num_kept else ""
        return f"{self.method}{suffix}{budget}"

    def prune_spec(self) -> PruneSpec:
        """The request that asks for this arm."""
        if self.method == DENSE:
            return PruneSpec(Policy.OFF)
        if not self.num_kept:
            return PruneSpec(method=self.method)
        return PruneSpec(
            Policy.TOKEN_BUDGET,
            method=self.method,
            max_visual_tokens=self.num_kept,
            alpha=self.alpha,
        )

    def to_json(self) -> dict[str, Any]:
        """Name and fields."""
        return {"name": self.name, **asdict(self)}


def dense_arm(num_patches: int) -> Arm:
    """The model with all ``num_patches`` visual tokens."""
    return Arm(DENSE, num_patches)


def arm_of(method: str, keep: int) -> Arm:
    """A method at a budget; at 0, its own, where it takes none."""
    return Arm(method, keep if takes_budget(method) else 0)


def engine_methods(manifest: Manifest | None = None) -> tuple[str, ...]:
    """Methods that run on any exported model, and those inside this one if it is in pieces."""
    names = {name for name in pruning.available(site="post_encoder") if name != "none"}
    if manifest and (manifest.llm.block_layers or manifest.vision.group_layers):
        names.update(in_model_methods())
    return tuple(sorted(names))


def split_methods(manifest: Manifest) -> tuple[tuple[str, ...], dict[str, str]]:
    """Of ``engine_methods``: those that this model runs, and name -> what the others miss."""
    reasons = {name: why_not_method(name, manifest) for name in engine_methods(manifest)}
    usable = tuple(name for name, reason in reasons.items() if not reason)
    return usable, {name: reason for name, reason in reasons.items() if reason}


def plan_arms(
    methods: Sequence[str],
    keeps: Sequence[int],
    num_patches: int,
    manifest: Manifest | None = None,
) -> tuple[Arm, ...]:
    """Dense, then every method at every budget below ``num_patches``, largest first.

    Keeping all N tokens is the identity for every method, so K = N is the dense arm. A method that
    takes no budget is one arm; one behind the encoder's cut ("cut+NAME") has no budgets above what
    the cut leaves.
    Args:
        manifest: of the model asked, for methods that cut inside it.
    Raises:
        ConfigError: a method is unknown or does not run on this model; a budget is not in [1, N].
    """
    for keep in keeps:
        if not 1 <= keep <= num_patches:
            raise ConfigError(f"--keep has {keep}; this model has 1 to {num_patches} visual tokens")
    for method in methods:
        _require_runs(method, manifest)
    budgets = sorted({keep for keep in keeps if keep < num_patches}, reverse=True)
    chosen = [method for method in dict.fromkeys(methods) if method != "none"]
    arms = [dense_arm(num_patches)]
    for method in chosen:
        most = most_kept(method, manifest) if manifest else num_patches
        own = [keep for keep in budgets if keep <= most] if takes_budget(method) else [0]
        if budgets and not own:
            raise ConfigError(
                f"{above_cut(method, budgets, most)}: add a budget of at most {most}, or leave"
                f" {method} out"
            )
        arms += [Arm(method, keep) for keep in own]
    return tuple(arms)


def above_cut(method: str, keeps: Sequence[int], most: int) -> str:
    """What is wrong with budgets above what the encoder's cut leaves to a method."""
    given = ", ".join(map(str, keeps))
    return f"--keep has {given}; the encoder's cut leaves {most} tokens for {method}"


def _require_runs(method: str, manifest: Manifest | None) -> None:
    cut, behind = split_method(method)
    pruner = pruning.load(behind)
    if cut:
        if manifest is None:
            raise ConfigError(
                f"--methods has {method}, whose vision encoder cuts: that is measured on an"
                f" exported model and not projected; choose {behind}"
            )
        require_cut(method, manifest)
        require_behind_cut(method, pruner)
    if isinstance(pruner, InModelPruner):
        if manifest is None:
            raise ConfigError(
                f"--methods has {method}, which prunes {pruner.site.replace('_', ' ')}; without"
                f" an exported model only {', '.join(engine_methods())} are known to run"
            )
        require_graphs(pruner, manifest)
