"""ToMe in the engine: merge the tokens whose keys are most alike; attention weighs by size."""

from __future__ import annotations

from typing import ClassVar

from edge_atp.errors import ConfigError
from edge_atp.pruning.schedule import Schedule
from edge_atp.pruning.tome import match, merge
from edge_atp.runtime.in_vit.base import EncoderRule, GroupView, PatchTokens


class Rule(EncoderRule):
    """One merge in each of the first ``num_layers`` layers."""

    reads: ClassVar[tuple[str, ...]] = ("keys",)
    weighs_sizes: ClassVar[bool] = True

    def _plan(self, num_patches: int, num_kept: int | None) -> Schedule:
        """Patches left inside each layer."""
        count = self.vision.consumed_layers
        if self.pruner.num_layers > count:
            raise ConfigError(
                f"num_layers is {self.pruner.num_layers}, but the projector reads layer"
                f" {count - 1}; set num_layers to at most {count}"
            )
        schedule: Schedule = self.pruner.schedule(num_patches, num_kept)
        return schedule

    def cut(self, view: GroupView, tokens: PatchTokens) -> PatchTokens:
        """Merged tokens; each stands at its target's place."""
        stage, count = self.schedule.at(view.top), len(tokens.place)
        if stage is None or stage.num_kept >= count:
            return tokens
        matching = match(view.keys, count - stage.num_kept)
        states, sizes = merge(tokens.states, tokens.sizes, matching)
        return PatchTokens(states, tokens.place[matching.kept[1:] - 1], sizes)
