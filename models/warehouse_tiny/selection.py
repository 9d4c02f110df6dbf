"""Which visual tokens a training row keeps: the modes the language model must cope with.

Scores follow ATP: alpha * minmax(relevance) + (1 - alpha) * minmax(CLS attention), top K, ties to
the lowest index, kept in raster order.
"""

from __future__ import annotations

import torch
from torch import Tensor


def min_max(scores: Tensor) -> Tensor:
    """Scale each row to [0, 1]; a constant row gives zeros."""
    low = scores.amin(-1, keepdim=True)
    span = scores.amax(-1, keepdim=True) - low
    return torch.where(span > 0, (scores - low) / span.clamp_min(1e-12), torch.zeros_like(scores))


def atp_scores(relevance: Tensor, cls_attention: Tensor, alpha: float) -> Tensor:
    """(B, N) fused importance."""
    return alpha * min_max(relevance) + (1 - alpha) * min_max(cls_attention)


def top_k(scores: Tensor, count: int) -> Tensor:
    """(B, count) indices of the highest scores, ascending; ties go to the lowest index."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return order[..., :count].sort(-1).values
