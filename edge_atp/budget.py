"""Keep policy -> number of visual tokens kept.

``plan`` settles what a question asks for against the pipeline's defaults and validates it;
``Budget.num_kept`` is the rounding rule: keep_ratio * N rounded half up, at least 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edge_atp.errors import InvalidQueryError
from edge_atp.types import Array, Policy, PruneSpec

# Above the error of a float32 share in (0, 1], 3e-8.
MASS_TOLERANCE = 1e-7

# Tokens that fit a latency budget: (seconds, method) -> K.
LatencyModel = Callable[[float, str], int]


@dataclass(frozen=True)
class Budget:
    """A settled pruning request: method, fusion weight and how many tokens to keep."""

    policy: Policy
    method: str
    alpha: float
    value: float

    def num_kept(self, num_patches: int, scores: Array | None = None) -> int:
        """K for an image of ``num_patches`` patches.

        Args:
            num_patches: N.
            scores: (N,) importance, needed by Policy.SCORE_MASS.
        Returns:
            K in [1, N].
        """
        if self.policy is Policy.OFF:
            return num_patches
        if self.policy is Policy.KEEP_RATIO:
            return ratio_to_tokens(self.value, num_patches)
        if self.policy is Policy.TOKEN_BUDGET:
            return min(int(self.value), num_patches)
        if scores is None:
            raise InvalidQueryError(
                f"prune.policy SCORE_MASS needs scores, which method {self.method!r} does not"
                " compute; choose atp or cls_topk"
            )
        return mass_to_tokens(self.value, scores)


def ratio_to_tokens(keep_ratio: float, num_patches: int) -> int:
    """keep_ratio * N, rounded half up, at least 1."""
    # A float32 ratio off the wire (0.3 -> 0.30000001) must not tip the rounding.
    return max(1, math.floor(round(keep_ratio * num_patches, 4) + 0.5))


def mass_to_tokens(score_mass: float, scores: Array) -> int:
    """Smallest K whose K largest scores sum to at least ``score_mass`` of the total.

    Args:
        score_mass: share in (0, 1].
        scores: (N,) importance of any sign; shifted so that none is below 0.
    Returns:
        K in [1, N]; for a share of 1 all tokens with a score above 0, and for scores that are all 0
        that of equal ones.
    """
    values = np.sort(np.asarray(scores, dtype=np.float64))[::-1]
    values = values - min(values[-1], 0.0)
    if values[0] == 0.0:
        values = np.ones_like(values)
    if score_mass >= 1.0:
        return int(np.count_nonzero(values))
    # A float32 share off the wire (0.6 -> 0.60000002) must not ask for one token more.
    reached = np.cumsum(values) / values.sum() >= score_mass - MASS_TOLERANCE
    return int(np.argmax(reached)) + 1


def plan(spec: PruneSpec, default: Budget, latency_model: LatencyModel | None = None) -> Budget:
    """Validate what a question asks of pruning and fill in the defaults.

    Args:
        spec: the question's request.
        default: the pipeline's own budget.
        latency_model: cost model of this device for Policy.LATENCY_BUDGET.
    Raises:
        InvalidQueryError: a field is out of range; names the field and the range.
    """
    method = spec.method or default.method
    alpha = default.alpha if spec.alpha is None else spec.alpha
    _require(0.0 <= alpha <= 1.0, "prune.alpha", alpha, "[0, 1] (negative: node default)")
    if spec.policy is Policy.NODE_DEFAULT:
        return Budget(default.policy, method, alpha, default.value)
    if spec.policy is Policy.OFF:
        return Budget(Policy.OFF, "none", alpha, 1.0)
    if spec.policy is Policy.KEEP_RATIO:
        _require(0.0 < spec.keep_ratio <= 1.0, "prune.keep_ratio", spec.keep_ratio, "(0, 1]")
        return Budget(Policy.KEEP_RATIO, method, alpha, spec.keep_ratio)
    if spec.policy is Policy.TOKEN_BUDGET:
        tokens = spec.max_visual_tokens
        allowed = "[1, inf): the most that are kept, all of an image with fewer"
        _require(tokens >= 1, "prune.max_visual_tokens", tokens, allowed)
        return Budget(Policy.TOKEN_BUDGET, method, alpha, tokens)
    if spec.policy is Policy.SCORE_MASS:
        _require(0.0 < spec.score_mass <= 1.0, "prune.score_mass", spec.score_mass, "(0, 1]")
        return Budget(Policy.SCORE_MASS, method, alpha, spec.score_mass)
    return _plan_latency(spec, method, alpha, latency_model)


def _plan_latency(
    spec: PruneSpec, method: str, alpha: float, latency_model: LatencyModel | None
) -> Budget:
    if latency_model is None:
        raise InvalidQueryError(
            "prune.policy LATENCY_BUDGET needs a cost model of this device, and this pipeline was"
            " loaded without one; ask with KEEP_RATIO or TOKEN_BUDGET"
        )
    seconds = spec.latency_budget_s
    _require(0.0 < seconds < math.inf, "prune.latency_budget", seconds, "(0, inf) seconds")
    return Budget(Policy.TOKEN_BUDGET, method, alpha, max(1, latency_model(seconds, method)))


def _require(holds: bool, name: str, value: float, allowed: str) -> None:
    # NaN fails every comparison, so it lands here too.
    if not holds:
        raise InvalidQueryError(f"{name} is {value:g}; it must be in {allowed}")
