"""The account of one question, and the table of methods against budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_atp.errors import ConfigError
from edge_atp.flops.count import (
    decode_flops,
    kv_cache_bytes,
    prefill_flops,
    projector_flops,
    text_tower_flops,
    vision_flops,
)
from edge_atp.flops.models import ModelSpec
from edge_atp.flops.plan import Plan, make_plan
from edge_atp.pruning import available


@dataclass(frozen=True)
class Account:
    """FLOPs of one question about one image, and the memory of its KV cache.

    decode: all steps after the first token. kv_cache_bytes: after the last step.
    mean_visual: visual tokens averaged over the LLM's layers.
    """

    vision: float
    projector: float
    text_tower: float
    selection: float
    prefill: float
    decode: float
    kv_cache_bytes: int
    mean_visual: float

    @property
    def total(self) -> float:
        """FLOPs until the first token: everything but decode."""
        return self.vision + self.projector + self.text_tower + self.selection + self.prefill


def account(
    model: ModelSpec,
    plan: Plan,
    text_tokens: int,
    new_tokens: int = 1,
    convention: str = "papers",
) -> Account:
    """Everything one question costs under ``plan``."""
    return Account(
        vision=vision_flops(model, plan.encoder_tokens, convention),
        projector=projector_flops(model, plan.projected),
        text_tower=text_tower_flops(model) if plan.text_tower else 0.0,
        selection=plan.selection,
        prefill=prefill_flops(model, plan.llm_tokens, text_tokens, convention),
        decode=decode_flops(model, plan.llm_tokens, text_tokens, new_tokens),
        kv_cache_bytes=kv_cache_bytes(model, plan.llm_tokens, text_tokens, new_tokens),
        mean_visual=sum(plan.llm_tokens) / len(plan.llm_tokens),
    )


@dataclass(frozen=True)
class Row:
    """One line of the table that ``edge-atp flops`` prints; FLOPs in units of 1e12.

    relative: total over the dense model's. relative_prefill: the LLM's prefill alone. Neither means
    anything without ``text_tokens``.
    """

    method: str
    kept: int | None
    text_tokens: int
    mean_visual: float
    vision: float
    projector: float
    text_tower: float
    selection: float
    prefill: float
    decode: float
    total: float
    relative: float
    relative_prefill: float
    kv_cache_mb: float


def table(
    model: ModelSpec,
    keeps: Sequence[int],
    methods: Sequence[str] | None = None,
    text_tokens: int = 64,
    new_tokens: int = 16,
    convention: str = "engine",
) -> list[Row]:
    """The dense model and every method at every budget.

    Args:
        keeps: visual tokens kept.
        methods: names; None for all that run on ``model`` with their default options (those that
            need a text tower or more layers than it has are left out).
        text_tokens: text of the prompt. A relative figure means nothing without it.
        new_tokens: tokens generated.
        convention: "papers" or "engine".
    Returns:
        rows, dense first.
    Raises:
        ConfigError: unknown method or convention, or a budget the model cannot have.
    """
    names = list(methods or _runnable(model))
    dense_plan = make_plan(model, "none", None, text_tokens)
    dense = account(model, dense_plan, text_tokens, new_tokens, convention)
    rows = [_row("none", None, text_tokens, dense, dense)]
    for name in names:
        for kept in keeps:
            plan = make_plan(model, name, kept, text_tokens)
            costs = account(model, plan, text_tokens, new_tokens, convention)
            rows.append(_row(name, kept, text_tokens, costs, dense))
    return rows


def _runnable(model: ModelSpec) -> list[str]:
    names = []
    for name in available():
        try:
            plan = make_plan(model, name, model.visual_tokens, text_tokens=1)
        except ConfigError:
            continue
        if name != "none" and not (plan.text_tower and model.text is None):
            names.append(name)
    return names


def relative_prefill(
    model: ModelSpec, num_kept: int, text_tokens: int, convention: str = "papers"
) -> float:
    """LLM prefill with ``num_kept`` visual tokens over the dense one.

    ATP's Table 1 (256 -> 150 tokens) names no text length; this is what its figure depends on.
    """
    layers = model.llm.layers
    kept = prefill_flops(model, [num_kept] * layers, text_tokens, convention)
    return kept / prefill_flops(model, [model.visual_tokens] * layers, text_tokens, convention)


def _row(method: str, kept: int | None, text_tokens: int, costs: Account, dense: Account) -> Row:
    tera = 1e-12
    return Row(
        method=method,
        kept=kept,
        text_tokens=text_tokens,
        mean_visual=costs.mean_visual,
        vision=costs.vision * tera,
        projector=costs.projector * tera,
        text_tower=costs.text_tower * tera,
        selection=costs.selection * tera,
        prefill=costs.prefill * tera,
        decode=costs.decode * tera,
        total=costs.total * tera,
        relative=costs.total / dense.total,
        relative_prefill=costs.prefill / dense.prefill,
        kv_cache_mb=costs.kv_cache_bytes / 1e6,
    )
