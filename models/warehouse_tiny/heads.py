"""Throw-away classification heads on the consumed patch features (training only)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from models.warehouse_tiny.labels import IGNORE, NUM_CLASSES

_WEIGHT = {"role": 1.0, "slot": 1.0, "kind": 1.0, "colour": 1.0, "hazard": 0.5}
_GROUP_WEIGHT = {"same_colour": 1.0, "shelf_pattern": 0.7, "total": 1.2}


class DenseHeads(nn.Module):
    """One linear classifier a label on layer-normalised patch features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.classifiers = nn.ModuleDict(
            {name: nn.Linear(width, classes) for name, classes in NUM_CLASSES.items()}
        )

    def forward(
        self, features: Tensor, labels: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted loss and the accuracy of each head; (B, n, D) features, (B, n) labels."""
        h = self.norm(features)
        loss = features.new_zeros((), dtype=torch.float32)
        accuracy = {}
        for name, classifier in self.classifiers.items():
            label = labels[name]
            known = label != IGNORE
            if not known.any():
                continue
            logits = classifier(h[known]).float()
            weight = _WEIGHT.get(name) or _GROUP_WEIGHT[name]
            loss = loss + weight * nnf.cross_entropy(logits, label[known])
            accuracy[name] = (logits.argmax(-1) == label[known]).float().mean()
        return loss, accuracy
