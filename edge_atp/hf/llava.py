"""LLaVA-1.5: CLIP ViT without its last layer, two-layer projector, Llama-like decoder."""

from __future__ import annotations

from typing import ClassVar

from edge_atp.hf.family import (
    Family,
    Host,
    ImageLayout,
    Module,
    VisionCall,
    clip_like_tower,
    placeholder_id,
    tiles_as_images,
)


class Model(Family):
    """Every image is one square of patches; tokens are cut before the projector."""

    model_types: ClassVar[tuple[str, ...]] = ("llava",)

    def host(self, model: Module) -> Host:
        """Parts of the model."""
        return llava_host(model)

    def layout(
        self, host: Host, call: VisionCall, tiles: int, tokens: int, per_tile: bool
    ) -> list[ImageLayout]:
        """One group per image."""
        return tiles_as_images(tiles, tokens)


def llava_host(model: Module) -> Host:
    """Parts of a model built like LLaVA: vision tower, projector, language model."""
    inner = model.model
    ids = {name: placeholder_id(model.config, name) for name in ("image", "video")}
    return Host(
        model=model,
        inner=inner,
        projector=inner.multi_modal_projector,
        language_model=inner.language_model,
        layers=inner.language_model.layers,
        vision=clip_like_tower(inner.vision_tower, model.config),
        placeholder_ids={name: value for name, value in ids.items() if value is not None},
    )
