"""BLIP-2: EVA-CLIP ViT, Q-Former with a fixed number of queries, any language model.

Patches are cut between the ViT and the Q-Former's cross-attention. The ViT's text side is
open_clip's ``EVA01-g-14``; BLIP-2 reads the ViT one block short of its end, so joint-space patches
are those of the last block it has.
"""

from __future__ import annotations

from typing import ClassVar

from edge_atp.hf.family import (
    Family,
    Host,
    ImageLayout,
    Module,
    VisionCall,
    VisionTower,
    memory_layout,
    placeholder_id,
)


class Model(Family):
    """One image per prompt; the language model sees the Q-Former's queries only."""

    model_types: ClassVar[tuple[str, ...]] = ("blip-2",)
    in_llm: ClassVar[bool] = False
    memory: ClassVar[bool] = True

    def host(self, model: Module) -> Host:
        """Parts of the model."""
        vision = model.vision_model
        layers = vision.encoder.layers
        image = placeholder_id(model.config, "image")
        return Host(
            model=model,
            inner=model,
            projector=model.qformer,
            language_model=model.language_model,
            layers=(),
            vision=VisionTower(
                module=vision,
                layers=layers,
                feature_layer=len(layers) - 1,
                post_norm=vision.post_layernorm,
            ),
            placeholder_ids={} if image is None else {"image": image},
        )

    def layout(
        self, host: Host, call: VisionCall, tiles: int, tokens: int, per_tile: bool
    ) -> list[ImageLayout]:
        """One group per image."""
        return memory_layout(tiles, tokens)
