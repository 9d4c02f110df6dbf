"""What a pruning method is given about one encoded image: each signal only where it asks for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edge_atp.pruning import Pruner
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.outputs import VisionOutput
from edge_atp.types import PatchGrid, VisualSignals


def read_signals(
    engine: Engine, vision: VisionOutput, question: str, grid: PatchGrid, pruner: Pruner
) -> VisualSignals:
    """Signals of one image for one question.

    Args:
        engine: computes what the vision encoder did not put out; a model call each.
        pruner: says what it reads.
    """
    needs = pruner.needs
    signals = VisualSignals(
        patch_features=vision.patch_features,
        cls_attention=vision.cls_attention,
        patch_embeds=vision.patch_embeds,
        patch_grid=grid,
    )
    if "text_embed" in needs:
        signals = replace(signals, text_embed=engine.encode_text(question))
    if "image_embeds" in needs:
        every = np.arange(grid.num_patches, dtype=np.int64)
        signals = replace(signals, image_embeds=engine.project(vision.patch_features, every))
    if "text_tokens" in needs:
        signals = replace(signals, text_tokens=engine.embed_question(question))
    return signals
