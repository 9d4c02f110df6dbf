"""Qwen2-VL: any image size as one packed sequence, no CLS, 2x2 patches merged into one token.

Saliency is the attention a patch receives within its image or frame, averaged over the patches of
a token. Kept tokens keep their M-RoPE positions (time, row, column): renumbering them would move
them in the image. The vision encoder was never trained against a text encoder, so relevance takes
``text_tower="llm"``.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from edge_atp.hf.family import (
    Family,
    Host,
    ImageLayout,
    Module,
    Tensor,
    TokenGroup,
    VisionCall,
    VisionTower,
    placeholder_id,
)
from edge_atp.types import PatchGrid


class Model(Family):
    """Tokens are cut before the patch merger."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    position_policy: ClassVar[str] = "original"
    policies: ClassVar[tuple[str, ...]] = ("original",)

    def host(self, model: Module) -> Host:
        """Parts of the model."""
        return qwen_host(model)

    def layout(
        self, host: Host, call: VisionCall, tiles: int, tokens: int, per_tile: bool
    ) -> list[ImageLayout]:
        """One image after the other; a video's frames share or have their own budget."""
        return grid_layout(host, call, torch.arange(tokens), per_tile)


def qwen_host(model: Module, attention_layer: int | None = None) -> Host:
    """Parts of a Qwen VL model."""
    inner = model.model
    visual = inner.visual
    ids = {name: placeholder_id(model.config, name) for name in ("image", "video")}
    return Host(
        model=model,
        inner=inner,
        projector=visual.merger,
        language_model=inner.language_model,
        layers=inner.language_model.layers,
        vision=VisionTower(
            module=visual,
            layers=visual.blocks,
            feature_layer=len(visual.blocks) - 1,
            attention="attn",
            norms=("norm1", "norm2"),
            has_cls=False,
            attention_layer=attention_layer,
        ),
        placeholder_ids={name: value for name, value in ids.items() if value is not None},
        patches_per_token=visual.spatial_merge_size**2,
    )


def grids(call: VisionCall) -> Tensor:
    """(images, 3) int64 frames, rows and columns of patches of each image of a call."""
    return call.arguments[f"{call.modality}_grid_thw"]


def grid_layout(host: Host, call: VisionCall, order: Tensor, per_frame: bool) -> list[ImageLayout]:
    """Budget groups of images given by their grids.

    Args:
        order: (F,) projector tokens in the order in which the language model sees them.
        per_frame: one group a frame, or one a video.
    """
    merge = host.inner.visual.spatial_merge_size
    layouts, start = [], 0
    for frames, rows, cols in grids(call).tolist():
        grid = PatchGrid(rows // merge, cols // merge)
        tokens = order[start : start + frames * grid.num_patches]
        if per_frame or frames == 1:
            groups = tuple(TokenGroup(frame, grid) for frame in tokens.view(frames, -1))
        else:
            groups = (TokenGroup(tokens),)
        layouts.append(ImageLayout(groups, len(tokens)))
        start += len(tokens)
    return layouts
