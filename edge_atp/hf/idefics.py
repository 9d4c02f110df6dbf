"""Flamingo, as IDEFICS: CLIP ViT, perceiver resampler, gated cross-attention in the decoder.

DeepMind never released Flamingo, and ``transformers`` has no class of that name. IDEFICS is the
open re-implementation that it maintains, with the same architecture and published checkpoints;
open_flamingo's own package is unmaintained and pins old releases of its dependencies. Patches are
cut in front of the resampler. The ViT is open_clip's ``ViT-H-14``, which brings the text side.
"""

from __future__ import annotations

from typing import ClassVar

from edge_atp.errors import ConfigError
from edge_atp.hf.family import (
    Family,
    Host,
    ImageLayout,
    Module,
    VisionCall,
    VisionTower,
    memory_layout,
)


class Model(Family):
    """The decoder cross-attends to the resampler's latents; it has no visual rows."""

    model_types: ClassVar[tuple[str, ...]] = ("idefics",)
    in_llm: ClassVar[bool] = False
    memory: ClassVar[bool] = True

    def host(self, model: Module) -> Host:
        """Parts of the model."""
        inner = model.model
        if not model.config.use_resampler:
            raise ConfigError(
                "config.use_resampler is false: this IDEFICS has no perceiver resampler to cut in"
                " front of; use a checkpoint with one (HuggingFaceM4/idefics-9b)"
            )
        layers = inner.vision_model.encoder.layers
        return Host(
            model=model,
            inner=inner,
            projector=inner.perceiver_resampler,
            language_model=inner,
            layers=(),
            vision=VisionTower(
                module=inner.vision_model,
                layers=layers,
                feature_layer=len(layers) - 1,
                post_norm=inner.vision_model.post_layernorm,
            ),
            placeholder_ids={},
        )

    def layout(
        self, host: Host, call: VisionCall, tiles: int, tokens: int, per_tile: bool
    ) -> list[ImageLayout]:
        """One group per image."""
        return memory_layout(tiles, tokens)
