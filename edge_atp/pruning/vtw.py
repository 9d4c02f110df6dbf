"""VTW: withdraw every visual token at one LLM layer.

Which layer is a calibration: the first at which withdrawing hardly changes the answer's logits.
Source: Lin et al., "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for
Rapid Inference", sec. 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace

from edge_atp.errors import ConfigError
from edge_atp.pruning.base import InModelPruner
from edge_atp.pruning.schedule import Schedule, Stage
from edge_atp.types import Array


def kl_divergence(dense_logits: Array, withdrawn_logits: Array) -> float:
    """KL(dense || withdrawn) of the next-token distributions.

    Args:
        dense_logits, withdrawn_logits: (V,) of the last prompt position.
    Returns:
        nats, 0 or more.
    """
    xp = array_namespace(dense_logits, withdrawn_logits)

    def log_softmax(logits: Array) -> Array:
        logits = xp.astype(logits, xp.float64)
        logits = logits - xp.max(logits)
        return logits - xp.log(xp.sum(xp.exp(logits)))

    dense, withdrawn = log_softmax(dense_logits), log_softmax(withdrawn_logits)
    return max(0.0, float(xp.sum(xp.exp(dense) * (dense - withdrawn))))


def choose_layer(divergences: Mapping[int, float], threshold: float) -> int:
    """The first layer whose mean divergence over a calibration set is below the threshold.

    Args:
        divergences: layer -> mean KL when the visual tokens leave before it.
        threshold: nats.
    Raises:
        ConfigError: no layer qualifies; says what the smallest divergence is.
    """
    for layer in sorted(divergences):
        if divergences[layer] < threshold:
            return layer
    smallest = min(divergences.values(), default=float("nan"))
    raise ConfigError(
        f"no layer withdraws the visual tokens below a divergence of {threshold}; the smallest of"
        f" {len(divergences)} layers is {smallest:.4g}: raise the threshold"
    )


@dataclass(frozen=True)
class Method(InModelPruner):
    """All visual tokens leave before ``layer`` (15 of 32 for LLaVA-1.5-7B)."""

    site: ClassVar[str] = "in_llm"

    layer: int = 15

    def __post_init__(self) -> None:
        if self.layer < 1:
            raise ConfigError(f"layer is {self.layer}; it must be 1 or more")

    def schedule(self, num_visual: int, num_kept: int | None = None) -> Schedule:
        """One stage that keeps nothing; the budget plays no part."""
        del num_visual, num_kept
        return Schedule((Stage(self.layer, 0),))

    def scored_rows(self, num_visual: int, num_text: int) -> int:
        """No row: every visual token goes."""
        del num_visual, num_text
        return 0
