"""What a block of layers computed while it ran on a prompt, and one more row run beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_atp.pruning.attention import attention_rows
from edge_atp.runtime.in_llm.caches import BlockCache
from edge_atp.runtime.outputs import Float


@dataclass(frozen=True)
class SideStep:
    """A row that is no token, behind a block.

    state: (H,) entering the next layer.
    attention: layer -> (n + 1, n + 1) head mean of the first n rows and, last, the side row.
    """

    state: Float
    attention: Mapping[int, Float]


@dataclass(frozen=True)
class PassedBlock:
    """A block that has just run on a prompt and holds its keys and values.

    layers: numbers of its layers.
    position_ids, is_visual: (S,) of the prompt's rows.
    queries: layer -> (heads, S, d), rotated.
    cache: of this block.
    """

    layers: range
    position_ids: NDArray[np.int64]
    is_visual: NDArray[np.bool_]
    queries: Mapping[int, Float]
    cache: BlockCache

    @property
    def rows_to_last_visual(self) -> int:
        """Number of rows up to the last visual token."""
        return int(np.flatnonzero(self.is_visual)[-1]) + 1

    def last_row(self, layer: int) -> Float:
        """(heads, S) attention of the last row in a layer."""
        keys = self.cache.keys_values(layer, len(self.is_visual))[0]
        row: Float = attention_rows(self.queries[layer][:, -1:], keys)[:, 0]
        return row

    def values(self, layer: int, count: int) -> Float:
        """(kv_heads, count, d) values of a layer's first rows."""
        return self.cache.keys_values(layer, count)[1]

    def side_step(self, state: Float) -> SideStep:
        """Run a row through the block that attends to the rows up to the last visual token.

        It stands at the position of the token behind the image. No other row sees it, and the
        cache is as before.
        Args:
            state: (H,) entering the block's first layer.
        """
        count = self.rows_to_last_visual
        position = int(self.position_ids[min(count, len(self.position_ids) - 1)])
        step = self.cache.run_aside(state, position, count)
        causal = np.tri(count + 1, dtype=np.bool_)
        attention = {}
        for layer in self.layers:
            keys = self.cache.keys_values(layer, count)[0]
            rows = attention_rows(
                np.concatenate([self.queries[layer][:, :count], step.queries[layer]], axis=1),
                np.concatenate([keys, step.keys[layer]], axis=1),
                visible=causal,
            )
            attention[layer] = rows.mean(axis=0)
        return SideStep(step.state, attention)
