"""CLS top-K."""

from __future__ import annotations

import numpy as np

from edge_atp.pruning import load
from edge_atp.types import VisualSignals


def test_ranks_by_the_mean_over_heads() -> None:
    attention = np.array([[0.1, 0.5, 0.2, 0.2], [0.5, 0.1, 0.3, 0.1]], np.float32)
    selection = load("cls_topk").select(VisualSignals(cls_attention=attention), 3)
    np.testing.assert_allclose(selection.scores, [0.3, 0.3, 0.25, 0.15], atol=1e-7)
    assert selection.order.tolist() == [0, 1, 2]


def test_takes_one_row_as_it_is() -> None:
    row = np.array([0.1, 0.2, 0.7], np.float32)
    selection = load("cls_topk").select(VisualSignals(cls_attention=row), 2)
    assert selection.order.tolist() == [2, 1]
    assert selection.kept_indices.tolist() == [1, 2]
