"""LLaVA-NeXT (1.6): a base view and any-resolution tiles, a newline token behind each row.

With the per-tile budget every tile keeps its K; otherwise the tiles of an image compete. A newline
token stays as long as its row keeps a token, and does not count.
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

from edge_atp.hf.family import Family, Host, ImageLayout, Module, Tensor, VisionCall
from edge_atp.hf.llava import llava_host
from edge_atp.hf.tiles import drop_idle_newlines, image_layout, packed_features, packed_numbers


class Model(Family):
    """Tokens are cut before the projector and before packing."""

    model_types: ClassVar[tuple[str, ...]] = ("llava_next",)

    def host(self, model: Module) -> Host:
        """Parts of the model."""
        return llava_host(model)

    def layout(
        self, host: Host, call: VisionCall, tiles: int, tokens: int, per_tile: bool
    ) -> list[ImageLayout]:
        """Tiles of each image, without the patches that are padding."""
        return [
            image_layout(numbers, tokens, per_tile) for numbers in packed_images(host, call, tokens)
        ]

    def finish(self, host: Host, call: VisionCall, output: Any) -> None:
        """Drop the newline tokens of rows that kept nothing."""
        tokens = tile_tokens(host)
        for packed, numbers in zip(
            packed_features(output), packed_images(host, call, tokens), strict=True
        ):
            drop_idle_newlines(packed, numbers, tokens)


def tile_tokens(host: Host) -> int:
    """Tokens of one tile."""
    vision = host.model.config.vision_config
    side: int = vision.image_size // vision.patch_size
    return side * side


def packed_images(host: Host, call: VisionCall, tokens: int) -> list[Tensor]:
    """Packed token numbers of each image of a call, see ``packed_numbers``."""
    sizes = call.arguments["image_sizes"]
    config = host.model.config
    # The tile count is a function of the model's own module, shared by its relatives.
    module = importlib.import_module(type(host.inner).__module__)
    counts = [
        module.image_size_to_num_patches(
            image_size=size,
            grid_pinpoints=config.image_grid_pinpoints,
            patch_size=config.vision_config.image_size,
        )
        for size in sizes
    ]

    def pack(values: list[Tensor], newline: Tensor) -> list[Tensor]:
        packed, _ = host.inner.pack_image_features(
            values,
            sizes,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            image_newline=newline,
        )
        return list(packed)

    return packed_numbers(pack, counts, tokens)
