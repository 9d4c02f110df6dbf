"""LLaVA-OneVision: SigLIP without a CLS token, tiles that are interpolated when there are many.

Saliency is received attention. Large images and videos are resampled behind the projector, so
tokens are always dropped there (prune site post-projector). With the per-tile budget the base view
and the stitched tiles keep K each, a video's frames K each.
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import torch

from edge_atp.errors import ConfigError
from edge_atp.hf.family import Family, Host, ImageLayout, Module, Tensor, VisionCall
from edge_atp.hf.llava import llava_host


class Model(Family):
    """Tokens are dropped behind packing, by signals that are packed the same way."""

    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)
    resamples: ClassVar[bool] = True

    def host(self, model: Module) -> Host:
        """Parts of the model."""
        return llava_host(model)

    def layout(
        self, host: Host, call: VisionCall, tiles: int, tokens: int, per_tile: bool
    ) -> list[ImageLayout]:
        """Not available: tokens are chosen behind packing."""
        raise ConfigError("llava_onevision resamples tokens; they have no layout before packing")

    def pack(self, host: Host, call: VisionCall, rows: Tensor) -> list[Tensor]:
        """(F, C) values of the projector's tokens -> (n, C) per image or video, newlines NaN."""
        side = host.model.config.vision_config.image_size
        side //= host.model.config.vision_config.patch_size
        tiles = rows.view(-1, side * side, rows.shape[-1])
        newline = rows.new_full((rows.shape[-1],), torch.nan)
        if call.modality == "image":
            return _pack_images(host, call, tiles, newline)
        videos = len(call.arguments["pixel_values_videos"])
        pooled = host.inner.apply_pooling(tiles).unflatten(0, (videos, -1)).flatten(1, 2)
        return [torch.cat((video, newline[None])) for video in pooled]

    def first_tokens(self, host: Host, call: VisionCall, tokens: int) -> int:
        """Tokens of the base view, or of one pooled frame."""
        if call.modality == "image":
            return tokens
        side: int = round(tokens**0.5)
        return ((side + 1) // 2) ** 2


def _pack_images(host: Host, call: VisionCall, tiles: Tensor, newline: Tensor) -> list[Tensor]:
    config, arguments = host.model.config, call.arguments
    sizes, per_sample = arguments["image_sizes"], arguments.get("batch_num_images")
    # Several images in one prompt are not tiled.
    tiled = [True] * len(sizes)
    if per_sample is not None:
        tiled = [int(count) == 1 for count in per_sample for _ in range(int(count))]
    module: Any = importlib.import_module(type(host.inner).__module__)
    counts = [
        module.image_size_to_num_patches(
            image_size=size,
            grid_pinpoints=config.image_grid_pinpoints,
            patch_size=config.vision_config.image_size,
        )
        if in_tiles
        else 1
        for size, in_tiles in zip(sizes, tiled, strict=True)
    ]
    packed, _ = host.inner.pack_image_features(
        list(tiles.split(counts)),
        sizes,
        image_newline=newline,
        vision_aspect_ratio=arguments.get("vision_aspect_ratio") or config.vision_aspect_ratio,
    )
    return list(packed)
