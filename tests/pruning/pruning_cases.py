"""Signals shared by the pruning tests, and what the house rules are checked on."""

from __future__ import annotations

import dataclasses

import numpy as np

from edge_atp.pruning import available, load
from edge_atp.types import PatchGrid, VisualSignals

# Every method at interface level, as it is and in its modes. A new method is found by itself.
VARIANTS = {name: (name, {}) for name in available("post_encoder")} | {
    "random-seeded": ("random", {"seed": 3}),
    "spatial-stride": ("spatial", {"mode": "stride"}),
    "atp-negated": ("atp", {"relevance_source": "negated", "alpha": 0.3}),
    "atp-received": ("atp", {"saliency_source": "received"}),
    "prumerge-plus": ("prumerge", {"plus": True}),
}

# Methods that keep exactly the K asked for.
EXACT = [name for name in VARIANTS if name != "none"]

# Methods whose choice depends on token values alone, not on positions.
BY_VALUE = [
    "cls_topk",
    "atp",
    "atp-negated",
    "atp-received",
    "trimtokenator",
    "divprune",
    "cdpruner",
    "mmtok",
    "prumerge",
]


def build(variant: str):
    name, options = VARIANTS[variant]
    return load(name, **options)


def make_signals(
    rows: int = 6, cols: int = 6, width: int = 24, seed: int = 0, text: int = 5
) -> VisualSignals:
    """Random signals with every field a method may need."""
    rng = np.random.default_rng(seed)
    num = rows * cols

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def attention(heads: int) -> np.ndarray:
        logits = np.exp(normal(heads, num))
        return logits / logits.sum(axis=1, keepdims=True)

    return VisualSignals(
        patch_features=normal(num, width),
        image_embeds=normal(num, width + 8),
        cls_attention=attention(4),
        received_attention=attention(4),
        patch_embeds=normal(num, 16),
        text_embed=normal(16),
        text_tokens=normal(text, width + 8),
        clip_text_tokens=normal(text, 16),
        patch_keys=normal(num, 12),
        cls_key=normal(12),
        cls_feature=normal(width),
        patch_grid=PatchGrid(rows, cols),
    )


def map_arrays(signals: VisualSignals, change) -> VisualSignals:
    """The signals with ``change`` applied to every array."""
    arrays = {
        field.name: change(getattr(signals, field.name))
        for field in dataclasses.fields(signals)
        if isinstance(getattr(signals, field.name), np.ndarray)
    }
    return dataclasses.replace(signals, **arrays)


def to_torch(signals: VisualSignals) -> VisualSignals:
    import torch

    return map_arrays(signals, lambda array: torch.from_numpy(np.ascontiguousarray(array)))


def used_fields(pruner) -> list[str]:
    """The array fields a method reads when all are present."""
    fields = [*pruner.needs, *(group[0] for group in pruner.needs_one_of)]
    return [name for name in fields if name != "patch_grid"]
