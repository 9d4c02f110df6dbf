"""Dimensions of the models whose compute ``edge_atp.flops`` counts.

Numbers are those of the published configurations; ``from_config`` reads any other from the
configuration dictionary of a Hugging Face checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge_atp.errors import ConfigError


@dataclass(frozen=True)
class Transformer:
    """Widths of a stack of equal layers.

    gated: the MLP has three matrices (SwiGLU) instead of two.
    """

    layers: int
    width: int
    mlp_width: int
    heads: int
    kv_heads: int
    head_width: int
    gated: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """A vision-language model.

    vision: layers counted are those that run (LLaVA takes features at layer -2: 23 of 24).
    patches: of one tile; ``merge`` of them become one visual token.
    patch_values: pixels times channels (times frames) of one patch.
    has_cls: the ViT carries one more token.
    projector: widths from input to output; the input is ``merge`` patches side by side.
    llm: the language model; ``vocab`` its head.
    text: the CLIP text tower that matches the ViT, None where there is none.
    joint_width: width of CLIP's joint space.
    tiles: images the ViT encodes for one picture (any-resolution models).
    """

    name: str
    vision: Transformer
    patches: int
    patch_values: int
    projector: tuple[int, ...]
    llm: Transformer
    vocab: int
    has_cls: bool = True
    merge: int = 1
    tiles: int = 1
    text: Transformer | None = None
    text_context: int = 77
    joint_width: int = 0

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of one picture before pruning (row separators not counted)."""
        return self.tiles * self.patches // self.merge


def _dense(layers: int, width: int, mlp_width: int, heads: int) -> Transformer:
    return Transformer(layers, width, mlp_width, heads, heads, width // heads)


_CLIP_L = _dense(23, 1024, 4096, 16)
_CLIP_L_TEXT = _dense(12, 768, 3072, 12)
_VICUNA_7B = Transformer(32, 4096, 11008, 32, 32, 128, gated=True)
_VICUNA_13B = Transformer(40, 5120, 13824, 40, 40, 128, gated=True)
_QWEN2_VIT = _dense(32, 1280, 5120, 16)


def _llava(name: str, llm: Transformer, tiles: int = 1) -> ModelSpec:
    return ModelSpec(
        name=name,
        vision=_CLIP_L,
        patches=576,
        patch_values=3 * 14 * 14,
        projector=(1024, llm.width, llm.width),
        llm=llm,
        vocab=32000,
        tiles=tiles,
        text=_CLIP_L_TEXT,
        joint_width=768,
    )


def llava_1_5_7b() -> ModelSpec:
    """LLaVA-1.5-7B: CLIP ViT-L/14-336 and Vicuna-7B."""
    return _llava("llava-1.5-7b", _VICUNA_7B)


def llava_1_5_13b() -> ModelSpec:
    """LLaVA-1.5-13B: CLIP ViT-L/14-336 and Vicuna-13B."""
    return _llava("llava-1.5-13b", _VICUNA_13B)


def llava_next_7b() -> ModelSpec:
    """LLaVA-NeXT-7B (Vicuna) at its largest: the overview and four tiles, 2880 tokens."""
    return _llava("llava-next-7b", _VICUNA_7B, tiles=5)


def _qwen2_vl(name: str, llm: Transformer, vocab: int, visual_tokens: int) -> ModelSpec:
    return ModelSpec(
        name=name,
        vision=_QWEN2_VIT,
        patches=4 * visual_tokens,
        patch_values=3 * 2 * 14 * 14,
        projector=(4 * 1280, 4 * 1280, llm.width),
        llm=llm,
        vocab=vocab,
        has_cls=False,
        merge=4,
    )


def qwen2_vl_7b(visual_tokens: int = 1024) -> ModelSpec:
    """Qwen2-VL-7B; the token count follows the image (1024 for 896 x 896 pixels)."""
    llm = Transformer(28, 3584, 18944, 28, 4, 128, gated=True)
    return _qwen2_vl("qwen2-vl-7b", llm, 152064, visual_tokens)


def qwen2_vl_2b(visual_tokens: int = 1024) -> ModelSpec:
    """Qwen2-VL-2B; the token count follows the image (1024 for 896 x 896 pixels)."""
    llm = Transformer(28, 1536, 8960, 12, 2, 128, gated=True)
    return _qwen2_vl("qwen2-vl-2b", llm, 151936, visual_tokens)


MODELS: Mapping[str, Callable[[], ModelSpec]] = {
    "llava-1.5-7b": llava_1_5_7b,
    "llava-1.5-13b": llava_1_5_13b,
    "llava-next-7b": llava_next_7b,
    "qwen2-vl-7b": qwen2_vl_7b,
    "qwen2-vl-2b": qwen2_vl_2b,
}


def named(name: str) -> ModelSpec:
    """One of ``MODELS``.

    Raises:
        ConfigError: unknown name; lists the choices.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}; choose one of {', '.join(MODELS)}")
    return MODELS[name]()


def with_visual_tokens(model: ModelSpec, visual_tokens: int) -> ModelSpec:
    """The model on an image of another size: its ViT's grid, and so its visual tokens.

    Raises:
        ConfigError: below 1, or not the same number for each of its tiles.
    """
    patches, rest = divmod(visual_tokens * model.merge, model.tiles)
    if visual_tokens < 1 or rest:
        raise ConfigError(
            f"visual_tokens is {visual_tokens}; {model.name} encodes {model.tiles} tiles, so it"
            f" must be a positive multiple of {model.tiles}"
        )
    return dataclasses.replace(model, patches=patches)


def from_config(
    name: str, config: Mapping[str, Any], text_tower: Mapping[str, Any] | None = None
) -> ModelSpec:
    """Dimensions of a LLaVA-style checkpoint: CLIP or SigLIP ViT, two-layer projector, LLM.

    Args:
        name: for messages.
        config: the checkpoint's config with ``vision_config`` and ``text_config``.
        text_tower: config of the matching CLIP text tower, if the model ships one.
    Raises:
        ConfigError: names the missing key.
    """
    vision, llm = _part(name, config, "vision_config"), _part(name, config, "text_config")
    grid = _get(name, vision, "image_size") // _get(name, vision, "patch_size")
    depth = _get(name, vision, "num_hidden_layers")
    layer = config.get("vision_feature_layer", -2)
    run = layer if layer >= 0 else depth + 1 + layer
    tower = _transformer(name, vision, gated=False)
    language = _transformer(name, llm, gated=True)
    text = None if text_tower is None else _transformer(name, text_tower, gated=False)
    context, joint = 77, vision.get("projection_dim", 0)
    if text_tower is not None:
        context = text_tower.get("max_position_embeddings", 77)
        joint = text_tower.get("projection_dim", joint)
    return ModelSpec(
        name=name,
        vision=dataclasses.replace(tower, layers=run),
        patches=grid * grid,
        patch_values=3 * _get(name, vision, "patch_size") ** 2,
        projector=(tower.width, language.width, language.width),
        llm=language,
        vocab=_get(name, llm, "vocab_size"),
        has_cls="siglip" not in str(vision.get("model_type", "clip")),
        text=text,
        text_context=context,
        joint_width=joint,
    )


def _transformer(name: str, config: Mapping[str, Any], gated: bool) -> Transformer:
    width, heads = _get(name, config, "hidden_size"), _get(name, config, "num_attention_heads")
    return Transformer(
        layers=_get(name, config, "num_hidden_layers"),
        width=width,
        mlp_width=_get(name, config, "intermediate_size"),
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_width=config.get("head_dim") or width // heads,
        gated=gated,
    )


def _part(name: str, config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = config.get(key)
    if not isinstance(part, Mapping):
        raise ConfigError(f"the config of {name} has no {key}; give a LLaVA-style config")
    return part


def _get(name: str, config: Mapping[str, Any], key: str) -> int:
    if config.get(key) is None:
        raise ConfigError(f"the config of {name} does not say {key}")
    return int(config[key])
