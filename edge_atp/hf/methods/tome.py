"""ToMe: between attention and MLP, merge the tokens whose keys are most alike."""

from __future__ import annotations

from typing import Any

from edge_atp.hf.budget import Keep
from edge_atp.hf.family import Tensor
from edge_atp.hf.hooks.encoder import EncoderRule, Tile
from edge_atp.hf.hooks.projections import Heads
from edge_atp.pruning.schedule import Schedule
from edge_atp.pruning.tome import match, merge


class Rule(EncoderRule):
    """Merges in the first ``num_layers`` layers; attention weighs tokens by size."""

    needs_cls = False
    weighs_sizes = True

    def __init__(self, method: Any, keep: Keep | None) -> None:
        self._method = method
        self._keep = keep

    def watched(self, num_layers: int) -> tuple[int, ...]:
        """All layers: those behind the last merge still weigh tokens by size."""
        return tuple(range(max(num_layers, self._method.num_layers)))

    def schedule(self, num_patches: int) -> Schedule:
        """Patches left inside each layer."""
        count = None if self._keep is None else self._keep.num_kept(num_patches)
        schedule: Schedule = self._method.schedule(num_patches, count)
        return schedule

    def cut(
        self, layer: int, schedule: Schedule, tile: Tile, states: Tensor, heads: Heads
    ) -> Tensor:
        """Merged tokens; each stands at its target's place."""
        stage = schedule.at(layer)
        num_patches = len(tile.place)
        if stage is None or stage.num_kept >= num_patches:
            return states
        has_cls = len(states) > num_patches
        matching = match(heads.keys.mean(0), num_patches - stage.num_kept, has_cls)
        tokens, tile.sizes = merge(states, tile.sizes, matching)
        tile.place = tile.place[matching.kept[int(has_cls) :] - int(has_cls)]
        return tokens
