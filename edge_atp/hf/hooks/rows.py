"""Dropping rows of a batch of sequences that lose different numbers of tokens.

Rows that become too short are padded on the left, where generation expects padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edge_atp.hf.family import Tensor


@dataclass(frozen=True)
class RowCut:
    """Which rows of (B, n, ...) survive.

    index: (B, m) int64 into the n rows; ascending where ``filled``.
    filled: (B, m) bool; the others are padding on the left.
    """

    index: Tensor
    filled: Tensor

    @staticmethod
    def from_mask(keep: Tensor) -> RowCut:
        """Keep the rows where ``keep`` (B, n) is true."""
        longest = int(keep.sum(1).max())
        # A stable sort on the flag puts the dropped rows first and keeps the order of the rest.
        order = torch.argsort(keep.to(torch.uint8), dim=1, stable=True)
        index = order[:, keep.shape[1] - longest :]
        return RowCut(index, keep.gather(1, index))

    def rows(self, values: Tensor) -> Tensor:
        """Cut (B, n, d); padding is zero, so that a masked row cannot spread NaN."""
        index = self.index.unsqueeze(-1).expand(-1, -1, values.shape[-1])
        cut = values.gather(1, index)
        return cut.masked_fill(~self.filled.unsqueeze(-1), 0.0)

    def flags(self, values: Tensor) -> Tensor:
        """Cut (B, n) bool; padding is false."""
        return values.gather(1, self.index) & self.filled

    def positions(self, values: Tensor) -> Tensor:
        """Cut position ids (..., B, n); padding takes 0."""
        index = self.index.expand(*values.shape[:-1], -1)
        return values.gather(-1, index).masked_fill(~self.filled, 0)
