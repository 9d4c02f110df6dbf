"""EViT: between attention and MLP, keep what CLS attends to and fuse the rest.

The fused token takes the place of the last dropped patch, so tokens stay in raster order.
"""

from __future__ import annotations

from typing import Any

import torch

from edge_atp.hf.budget import Keep
from edge_atp.hf.family import Tensor
from edge_atp.hf.hooks.encoder import EncoderRule, Tile
from edge_atp.hf.hooks.projections import Heads
from edge_atp.pruning.attention import attention_rows
from edge_atp.pruning.evit import fuse, split
from edge_atp.pruning.schedule import Schedule


class Rule(EncoderRule):
    """One split at each of the method's layers."""

    def __init__(self, method: Any, keep: Keep | None) -> None:
        self._method = method
        self._keep = keep

    def watched(self, num_layers: int) -> tuple[int, ...]:
        """The layers that cut."""
        return tuple(self._method.layers)

    def schedule(self, num_patches: int) -> Schedule:
        """Kept patches, the fused token apart."""
        count = None if self._keep is None else self._keep.num_kept(num_patches)
        schedule: Schedule = self._method.schedule(num_patches, count)
        return schedule

    def cut(
        self, layer: int, schedule: Schedule, tile: Tile, states: Tensor, heads: Heads
    ) -> Tensor:
        """CLS, the kept patches and the fused token."""
        stage = schedule.at(layer)
        patches = states[1:]
        if stage is None or stage.num_kept >= len(patches):
            return states
        row = attention_rows(heads.queries[:, :1], heads.keys)[:, 0, 1:]
        parts = split(row, stage.num_kept)
        fused = fuse(patches, parts.scores, parts.dropped)
        place = torch.cat((tile.place[parts.kept], tile.place[parts.dropped].max()[None]))
        tokens = torch.cat((patches[parts.kept], fused[None]))
        order = place.argsort()
        tile.place = place[order]
        return torch.cat((states[:1], tokens[order]))
