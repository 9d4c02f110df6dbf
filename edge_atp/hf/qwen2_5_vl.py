"""Qwen2.5-VL: Qwen2-VL with windowed attention in most vision layers.

The encoder keeps patches in window order and puts tokens back in raster order behind the merger.
Saliency comes from the last layer that attends over the whole image.
"""

from __future__ import annotations

import importlib
from typing import ClassVar

import torch

from edge_atp.hf.family import Family, Host, ImageLayout, Module, Tensor, VisionCall
from edge_atp.hf.qwen2_vl import grid_layout, grids, qwen_host


class Model(Family):
    """As Qwen2-VL, with the window order undone."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)
    position_policy: ClassVar[str] = "original"
    policies: ClassVar[tuple[str, ...]] = ("original",)

    def host(self, model: Module) -> Host:
        """Parts of the model."""
        return qwen_host(model, max(model.model.visual.fullatt_block_indexes))

    def layout(
        self, host: Host, call: VisionCall, tiles: int, tokens: int, per_tile: bool
    ) -> list[ImageLayout]:
        """Raster order over tokens that the merger sees in window order."""
        order = torch.argsort(window_order(host.inner.visual, grids(call)))
        return grid_layout(host, call, order, per_tile)


def window_order(visual: Module, grid_thw: Tensor) -> Tensor:
    """(F,) int64 raster number of each token in the order the merger sees them."""
    if hasattr(visual, "get_window_index"):  # releases before 5
        return torch.as_tensor(visual.get_window_index(grid_thw)[0])
    module = importlib.import_module(type(visual).__module__)
    index, _ = module.get_vision_window_index(
        grid_thw,
        spatial_merge_size=visual.spatial_merge_size,
        window_size=visual.window_size,
        patch_size=visual.patch_size,
        kwargs={},
    )
    return index
