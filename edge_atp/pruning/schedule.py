"""Which layer of a model keeps how many visual tokens: the plan of methods that cut in stages.

Layers count from 0, and a stage cuts the tokens that *enter* its layer: layers before it see the
longer sequence. Knows nothing of how the tokens are ranked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_atp.errors import ConfigError


@dataclass(frozen=True)
class Stage:
    """One cut: ``num_kept`` visual tokens enter layer ``layer``."""

    layer: int
    num_kept: int


@dataclass(frozen=True)
class Schedule:
    """Cuts in ascending layer order; the number of tokens never grows.

    Raises (on construction):
        ConfigError: layers do not strictly ascend, or a count is negative or grows.
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        for stage in self.stages:
            if stage.layer < 0 or stage.num_kept < 0:
                raise ConfigError(f"{stage}: layer and num_kept must be 0 or more")
        for before, after in zip(self.stages, self.stages[1:], strict=False):
            if after.layer <= before.layer:
                raise ConfigError(
                    f"stage layers are {self.layers}; they must strictly ascend, one cut a layer"
                )
            if after.num_kept > before.num_kept:
                raise ConfigError(
                    f"stage counts are {self.counts}; a stage cannot keep more than the one before"
                )

    @property
    def layers(self) -> tuple[int, ...]:
        """Layer of each cut."""
        return tuple(stage.layer for stage in self.stages)

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens left by each cut."""
        return tuple(stage.num_kept for stage in self.stages)

    def at(self, layer: int) -> Stage | None:
        """The cut before ``layer``, if there is one."""
        return next((stage for stage in self.stages if stage.layer == layer), None)

    def tokens_per_layer(
        self, num_layers: int, num_tokens: int, added: Callable[[int], int] | None = None
    ) -> list[int]:
        """Visual tokens each of ``num_layers`` layers sees, starting from ``num_tokens``.

        Args:
            added: number of dropped tokens -> tokens that a cut makes of them, on top of the kept
                ones (``Pruner.added``); None where it makes none.
        """
        tokens, current = [], num_tokens
        for layer in range(num_layers):
            stage = self.at(layer)
            if stage and stage.num_kept < current:
                made = added(current - stage.num_kept) if added else 0
                current = stage.num_kept + made
            tokens.append(current)
        return tokens


def from_ratios(layers: Sequence[int], ratios: Sequence[float], num_tokens: int) -> Schedule:
    """Keep the share ``ratios[s]`` of the *original* tokens from ``layers[s]`` on.

    Args:
        layers: ascending.
        ratios: in (0, 1], non-increasing; floor(ratio * num_tokens) are kept, at least 1.
        num_tokens: tokens before the first cut.
    Raises:
        ConfigError: lengths differ or a ratio is out of range.
    """
    if len(layers) != len(ratios):
        raise ConfigError(f"layers {tuple(layers)} and ratios {tuple(ratios)} differ in length")
    for ratio in ratios:
        if not 0.0 < ratio <= 1.0:
            raise ConfigError(f"ratio is {ratio}; it must be in (0, 1]")
    # 1e-9: 0.3 * 10 must floor to 3, not to 2.9999999999999996.
    counts = [max(1, math.floor(ratio * num_tokens + 1e-9)) for ratio in ratios]
    return Schedule(tuple(Stage(layer, k) for layer, k in zip(layers, counts, strict=True)))


def constant_ratio(layers: Sequence[int], num_tokens: int, num_kept: int) -> Schedule:
    """Cut by the same factor at every one of ``layers``, from ``num_tokens`` to ``num_kept``.

    The count after cut g of G is round(N * (K / N) ** (g / G)), halves up; the last is exactly K.
    Raises:
        ConfigError: num_kept out of [1, num_tokens], or no layers.
    """
    if not 1 <= num_kept <= num_tokens:
        raise ConfigError(f"num_kept is {num_kept}; it must be in [1, {num_tokens}]")
    if not layers:
        raise ConfigError("a schedule of constant ratio needs at least one layer")
    shares = [(g + 1) / len(layers) for g in range(len(layers))]
    counts = [math.floor(num_tokens * (num_kept / num_tokens) ** share + 0.5) for share in shares]
    return Schedule(tuple(Stage(layer, k) for layer, k in zip(layers, counts, strict=True)))
