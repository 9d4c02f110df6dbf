"""What a VLM family has to say about itself so that its visual tokens can be pruned.

One module of this folder per family, named after the family, with a class ``Model`` derived from
``Family``. Knows nothing of pruning methods: it names the parts of a loaded model and says which
projector tokens belong to which image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from edge_atp.errors import ConfigError
from edge_atp.types import PatchGrid

Tensor = Any  # torch.Tensor; torch ships no strict stubs here
Module = Any  # torch.nn.Module


@dataclass(frozen=True)
class VisionTower:
    """The vision encoder of a loaded model.

    module: the encoder.
    layers: its transformer layers, in order.
    feature_layer: 0-based index of the layer whose output the projector consumes.
    attention: attribute name of a layer's attention module.
    norms: attribute names of a layer's two normalisations (before attention, before the MLP).
    has_cls: whether token 0 is a CLS token.
    post_norm: normalisation in front of CLIP's visual projection, None where there is none.
    attention_layer: 0-based layer whose attention is scored, None for ``feature_layer``.
    """

    module: Module
    layers: Sequence[Module]
    feature_layer: int
    attention: str = "self_attn"
    norms: tuple[str, str] = ("layer_norm1", "layer_norm2")
    has_cls: bool = True
    post_norm: Module | None = None
    attention_layer: int | None = None


@dataclass(frozen=True)
class Host:
    """Where the parts of one loaded model are.

    model: what the user holds (it has ``generate``).
    inner: the module whose forward receives ``input_ids`` and pixels on every step.
    projector: maps vision features to the language model's width.
    language_model: the decoder stack that receives ``inputs_embeds``.
    layers: its decoder layers.
    placeholder_ids: token id of each modality's placeholder, e.g. {"image": 32000}.
    patches_per_token: encoder patches that the projector merges into one visual token.
    """

    model: Module
    inner: Module
    projector: Module
    language_model: Module
    layers: Sequence[Module]
    vision: VisionTower
    placeholder_ids: Mapping[str, int]
    patches_per_token: int = 1


@dataclass(frozen=True)
class TokenGroup:
    """Visual tokens that share one keep budget: an image, a tile or a frame.

    tokens: (M,) int64, their indices among all projector tokens of the call.
    grid: their geometry where they form a full rectangle.
    """

    tokens: Tensor
    grid: PatchGrid | None = None


@dataclass(frozen=True)
class ImageLayout:
    """One image (or video) of a vision call.

    groups: its tokens, in the order in which the language model sees them.
    num_placeholders: placeholder tokens it takes in ``input_ids``, separators included; 0 where
        prompts have none and images are spread evenly over them.
    """

    groups: tuple[TokenGroup, ...]
    num_placeholders: int


@dataclass(frozen=True)
class VisionCall:
    """One call of ``get_image_features`` or ``get_video_features``.

    modality: "image" or "video".
    arguments: what it was called with, by parameter name.
    """

    modality: str
    arguments: Mapping[str, Any]


class Family(ABC):
    """A VLM family. Subclasses are named ``Model``, one per module.

    Class attributes:
        model_types: values of ``model.config.model_type`` it serves.
        position_policy: what happens to the position ids of tokens after dropped ones:
            "compact" (renumbered without gaps) or "original" (kept).
        policies: the policies it supports.
        in_llm: whether the decoder sees visual tokens as rows, so that in-LLM methods apply.
        resamples: whether projected tokens are interpolated before the language model sees them,
            so that no single patch stands behind a token.
        memory: whether a resampler reads the encoder's tokens, instead of the language model.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    position_policy: ClassVar[str] = "compact"
    policies: ClassVar[tuple[str, ...]] = ("compact", "original")
    in_llm: ClassVar[bool] = True
    resamples: ClassVar[bool] = False
    memory: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The family's name: its module's."""
        return type(self).__module__.rsplit(".", 1)[-1]

    @abstractmethod
    def host(self, model: Module) -> Host:
        """Name the parts of a loaded model."""

    @abstractmethod
    def layout(
        self, host: Host, call: VisionCall, tiles: int, tokens: int, per_tile: bool
    ) -> list[ImageLayout]:
        """Which projector tokens belong to which image.

        Args:
            tiles: leading size of the projector's input (images, tiles or frames).
            tokens: visual tokens each of them gives.
            per_tile: whether every tile or frame has its own budget.
        """

    def pool(self, host: Host, call: VisionCall, signal: Tensor) -> Tensor:
        """Bring a per-patch signal (..., tiles, patches) to one value per projector token.

        The default averages the ``patches_per_token`` consecutive patches that form a token.
        """
        size = host.patches_per_token
        if size == 1:
            return signal
        return signal.unflatten(-1, (-1, size)).mean(-1)

    def pack(self, host: Host, call: VisionCall, rows: Tensor) -> list[Tensor]:
        """Pack (F, C) values of projector tokens as the model packs features; newlines NaN.

        Only for families that resample.
        """
        raise NotImplementedError

    def first_tokens(self, host: Host, call: VisionCall, tokens: int) -> int:
        """Packed tokens of an image's base view, or of a frame; for families that resample."""
        raise NotImplementedError

    def finish(self, host: Host, call: VisionCall, output: Any) -> None:
        """Adjust the packed features of a vision call in place; dropped rows are NaN."""


def consumed_layer(config: Any, num_layers: int) -> int:
    """0-based index of the vision layer whose output the projector consumes.

    ``vision_feature_layer`` counts hidden states, of which the first is the embedding: -2 is the
    output of the last but one layer. Of several layers the deepest counts.
    """
    choice = config.vision_feature_layer
    if not isinstance(choice, int):
        choice = max(choice, key=lambda index: index % (num_layers + 1))
    index: int = choice % (num_layers + 1) - 1
    if index < 0:
        raise ConfigError(
            f"vision_feature_layer is {config.vision_feature_layer}, the embeddings; pruning needs"
            " the output of a transformer layer"
        )
    return index


def clip_like_tower(tower: Module, config: Any) -> VisionTower:
    """Parts of a CLIP or SigLIP vision model used as a LLaVA-style tower."""
    # Older releases nest the encoder one level deeper.
    body: Any = getattr(tower, "vision_model", tower)
    if not hasattr(body, "encoder"):
        raise ConfigError(
            f"the vision encoder {type(tower).__name__} is neither CLIP nor SigLIP; this family"
            " serves those"
        )
    layers = body.encoder.layers
    has_cls = hasattr(body.embeddings, "class_embedding")
    if has_cls and config.vision_feature_select_strategy != "default":
        raise ConfigError(
            f"vision_feature_select_strategy is {config.vision_feature_select_strategy!r}, which"
            " hands the CLS token to the projector as a patch; set it to 'default'"
        )
    return VisionTower(
        module=tower,
        layers=layers,
        feature_layer=consumed_layer(config, len(layers)),
        has_cls=has_cls,
        post_norm=getattr(body, "post_layernorm", None),
    )


def square_grid(tokens: int) -> PatchGrid | None:
    """The grid of a square tile, None when ``tokens`` is not a square."""
    side = round(tokens**0.5)
    return PatchGrid(side, side) if side * side == tokens else None


def tiles_as_images(tiles: int, tokens: int, device: Any = None) -> list[ImageLayout]:
    """Every tile is one image with its own budget."""
    flat = torch.arange(tiles * tokens, device=device).view(tiles, tokens)
    grid = square_grid(tokens)
    return [ImageLayout((TokenGroup(row, grid),), tokens) for row in flat]


def memory_layout(tiles: int, tokens: int) -> list[ImageLayout]:
    """Every tile is one image, and prompts hold no placeholders that count its tokens."""
    return [replace(layout, num_placeholders=0) for layout in tiles_as_images(tiles, tokens)]


def placeholder_id(config: Any, modality: str) -> int | None:
    """Token id of a modality's placeholder, under either of the names configs use."""
    for name in (f"{modality}_token_id", f"{modality}_token_index"):
        value = getattr(config, name, None)
        if value is not None:
            return int(value)
    return None
