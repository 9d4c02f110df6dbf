"""EViT in the engine: keep what CLS attends to and fuse the rest into one token.

The fused token takes the place of the last dropped patch, so tokens stay in raster order.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from edge_atp.pruning.evit import fuse, split
from edge_atp.pruning.schedule import Schedule
from edge_atp.runtime.in_vit.base import EncoderRule, GroupView, PatchTokens


class Rule(EncoderRule):
    """One split at each of the method's layers."""

    reads: ClassVar[tuple[str, ...]] = ("attention",)

    def _plan(self, num_patches: int, num_kept: int | None) -> Schedule:
        """Kept patches, the fused token apart."""
        schedule: Schedule = self.pruner.schedule(num_patches, num_kept)
        return schedule

    def cut(self, view: GroupView, tokens: PatchTokens) -> PatchTokens:
        """CLS, the kept patches and the fused token."""
        stage = self.schedule.at(view.top)
        patches, sizes = tokens.states[1:], tokens.sizes[1:]
        if stage is None or stage.num_kept >= len(patches):
            return tokens
        parts = split(view.attention[-1][0, 1:], stage.num_kept)
        fused = fuse(patches, parts.scores, parts.dropped)
        place = np.append(tokens.place[parts.kept], tokens.place[parts.dropped].max())
        order = np.argsort(place)
        states = np.concatenate([patches[parts.kept], fused[None]])[order]
        counts = np.append(sizes[parts.kept], sizes[parts.dropped].sum())[order]
        return PatchTokens(
            np.concatenate([tokens.states[:1], states]),
            place[order],
            np.concatenate([tokens.sizes[:1], counts]).astype(np.float32),
        )
