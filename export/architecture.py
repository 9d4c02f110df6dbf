"""What the exporter must know of a checkpoint: shapes, activations, and canonical tensor names.

``read_llava`` maps a LLaVA checkpoint (LlavaForConditionalGeneration, in the namings that
transformers has used) to a ``Llava``; tensors are then found under ``vision.``, ``projector.``
and ``llm.`` whatever the checkpoint called them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from edge_atp.errors import ArtifactError
from export.checkpoint import TensorStore, read_config

SUPPORTED_MODELS = ("llava",)
SUPPORTED_VISION = ("clip_vision_model",)
SUPPORTED_LLMS = ("llama", "mistral", "qwen2")
SUPPORTED_ROPE = ("default", "linear", "llama3")

_RENAMES = (
    (re.compile(r"^(model\.)?vision_tower\.(vision_model\.)?"), "vision."),
    (re.compile(r"^(model\.)?multi_modal_projector\."), "projector."),
    (re.compile(r"^(language_model\.)?lm_head\."), "llm.lm_head."),
    (re.compile(r"^(model\.language_model|language_model\.model|language_model)\."), "llm."),
)


@dataclass(frozen=True)
class VisionConfig:
    """A CLIP vision transformer."""

    hidden: int
    layers: int
    heads: int
    image_size: int
    patch_size: int
    activation: str
    norm_eps: float
    feature_layer: int

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class LlmConfig:
    """A decoder-only language model of the Llama kind."""

    model_type: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocab: int
    activation: str
    norm_eps: float
    rope_theta: float
    rope: dict[str, Any]
    max_positions: int
    sliding_window: int | None
    tied: bool
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None


@dataclass(frozen=True)
class Llava:
    """A LLaVA checkpoint: vision encoder, projector, language model and their tensors."""

    folder: Path
    architecture: str
    vision: VisionConfig
    llm: LlmConfig
    projector_activation: str
    image_token_id: int
    tensors: TensorStore

    def float32_bytes(self) -> int:
        """Size of all weights in float32, which is what runs hold in memory."""
        storage = 4 if self.tensors.dtype("llm.embed_tokens.weight") == "float32" else 2
        return self.tensors.num_bytes() * 4 // storage


def canonical_name(stored: str) -> str:
    """The name the exporter uses for a tensor of a LLaVA checkpoint."""
    for pattern, replacement in _RENAMES:
        if pattern.match(stored):
            return pattern.sub(replacement, stored, count=1)
    return stored


def read_llava(folder: Path) -> Llava:
    """Read the configuration of a LLaVA checkpoint and open its tensors.

    Raises:
        ArtifactError: an unsupported architecture (the supported ones are listed), a missing
            field or file, pickled weights.
    """
    config = read_config(folder)
    kind = config.get("model_type")
    if kind not in SUPPORTED_MODELS:
        raise ArtifactError(
            f"{folder} is a {kind!r} checkpoint; the exporter supports"
            f" {', '.join(SUPPORTED_MODELS)} (vision encoder: {', '.join(SUPPORTED_VISION)};"
            f" language model: {', '.join(SUPPORTED_LLMS)})"
        )
    # The class fills in the defaults that published configurations leave out.
    parsed = transformers.LlavaConfig.from_pretrained(str(folder))
    config = parsed.to_dict()
    if config.get("vision_feature_select_strategy", "default") != "default":
        raise ArtifactError(
            f"{folder}: vision_feature_select_strategy is"
            f" {config['vision_feature_select_strategy']!r}; only 'default' (patches without CLS)"
            " is supported"
        )
    vision, llm = _read_vision(config), _read_llm(config)
    tensors = TensorStore(folder, canonical_name)
    _require_biases(tensors, parsed)
    return Llava(
        folder=folder,
        architecture=str((config.get("architectures") or ["LlavaForConditionalGeneration"])[0]),
        vision=vision,
        llm=llm,
        projector_activation=config.get("projector_hidden_act", "gelu"),
        image_token_id=int(_field(config, "config.json", "image_token_index", "image_token_id")),
        tensors=tensors,
    )


def _require_biases(tensors: TensorStore, config: transformers.LlavaConfig) -> None:
    """Every bias the original has must be there.

    The graphs take a layer without a stored bias as one that has none, and transformers starts a
    missing one at zero: both would agree on a wrong model.

    Raises:
        ArtifactError: one is missing; the message names it.
    """
    with torch.device("meta"):
        model = transformers.LlavaForConditionalGeneration(config)
    for name, _ in model.named_parameters():
        canonical = canonical_name(name)
        if not canonical.endswith(".bias") or canonical in tensors:
            continue
        # A whole layer that is missing is found, and named, if it is needed.
        if canonical.removesuffix("bias") + "weight" in tensors:
            tensors.shape(canonical)


def _read_vision(config: dict[str, Any]) -> VisionConfig:
    vision = config.get("vision_config") or {}
    kind = vision.get("model_type")
    if kind not in SUPPORTED_VISION:
        raise ArtifactError(
            f"the vision encoder is {kind!r}; the exporter supports {', '.join(SUPPORTED_VISION)}"
        )
    layer = config.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
        raise ArtifactError(f"vision_feature_layer is {layer!r}; one layer (an integer) is needed")
    where = "config.json: vision_config"
    return VisionConfig(
        hidden=int(_field(vision, where, "hidden_size")),
        layers=int(_field(vision, where, "num_hidden_layers")),
        heads=int(_field(vision, where, "num_attention_heads")),
        image_size=int(_field(vision, where, "image_size")),
        patch_size=int(_field(vision, where, "patch_size")),
        activation=vision.get("hidden_act", "quick_gelu"),
        norm_eps=float(vision.get("layer_norm_eps", 1e-5)),
        feature_layer=layer,
    )


def _read_llm(config: dict[str, Any]) -> LlmConfig:
    text = config.get("text_config") or {}
    kind = text.get("model_type")
    if kind not in SUPPORTED_LLMS:
        raise ArtifactError(
            f"the language model is {kind!r}; the exporter supports {', '.join(SUPPORTED_LLMS)}"
        )
    where = "config.json: text_config"
    heads = int(_field(text, where, "num_attention_heads"))
    hidden = int(_field(text, where, "hidden_size"))
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in SUPPORTED_ROPE:
        raise ArtifactError(
            f"rope type is {rope_type!r}; the exporter supports {', '.join(SUPPORTED_ROPE)}"
        )
    window = text.get("sliding_window") if text.get("use_sliding_window", True) else None
    return LlmConfig(
        model_type=kind,
        layers=int(_field(text, where, "num_hidden_layers")),
        heads=heads,
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or hidden // heads),
        hidden=hidden,
        intermediate=int(_field(text, where, "intermediate_size")),
        vocab=int(_field(text, where, "vocab_size")),
        activation=text.get("hidden_act", "silu"),
        norm_eps=float(text.get("rms_norm_eps", 1e-6)),
        rope_theta=float(rope.get("rope_theta") or text.get("rope_theta", 10000.0)),
        rope={**rope, "rope_type": rope_type},
        max_positions=int(text.get("max_position_embeddings", 2048)),
        sliding_window=int(window) if window else None,
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        eos_token_ids=_token_ids(text.get("eos_token_id", config.get("eos_token_id"))),
        bos_token_id=text.get("bos_token_id", config.get("bos_token_id")),
    )


def _token_ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(int(v) for v in value) if isinstance(value, list) else (int(value),)


def _field(config: dict[str, Any], where: str, *names: str) -> Any:
    for name in names:
        if config.get(name) is not None:
            return config[name]
    raise ArtifactError(f"{where}.{names[0]} is missing")
