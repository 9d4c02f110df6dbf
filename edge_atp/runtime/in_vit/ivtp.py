"""IVTP's first stage in the engine: groups of layers, ranked by the attention rolled out to CLS."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from edge_atp.errors import ConfigError
from edge_atp.pruning.ivtp import rank
from edge_atp.pruning.schedule import Schedule, Stage
from edge_atp.runtime.in_vit.base import EncoderRule, GroupView, PatchTokens, kept_only
from edge_atp.runtime.outputs import Float


class Rule(EncoderRule):
    """One cut at the top layer of each of the method's groups."""

    reads: ClassVar[tuple[str, ...]] = ("attention", "values")
    _group: list[Float]

    def _plan(self, num_patches: int, num_kept: int | None) -> Schedule:
        """Constant-ratio cuts; the last one is behind the last layer that the projector reads."""
        self._group = []
        method, count = self.pruner, self.vision.consumed_layers
        if method.encoder_layers - method.group_size >= count:
            raise ConfigError(
                f"encoder_layers is {method.encoder_layers}, but the projector reads layer"
                f" {count - 1}; groups of {method.group_size} end at"
                f" {count - count % -method.group_size} at most"
            )
        planned = method.encoder_schedule(num_patches, num_kept)
        return Schedule(tuple(Stage(min(s.layer, count), s.num_kept) for s in planned.stages))

    @property
    def cut_layers(self) -> tuple[int, ...]:
        """The top layer of each group; the schedule names the layer that fewer tokens enter."""
        return tuple(layer - 1 for layer in self.schedule.layers)

    def cut(self, view: GroupView, tokens: PatchTokens) -> PatchTokens:
        """Add the layers to the group's rollout; at its top, keep the best patches."""
        if view.first >= self.pruner.encoder_layers:
            return tokens
        self._group.extend(view.attention)
        stage = self.schedule.at(view.top + 1)
        if stage is None:
            return tokens
        patches = np.arange(1, len(tokens.states))
        kept = rank(self._group, view.values, 0, patches, stage.num_kept).kept_indices
        self._group.clear()
        return kept_only(tokens, kept)
