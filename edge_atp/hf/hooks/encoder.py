"""Cutting tokens inside the vision encoder.

A layer is ``x + attention(norm1(x))`` followed by ``x + mlp(norm2(x))``. Methods that cut behind a
whole layer need a forward hook; those that cut between the halves run the layer's own modules in
that order through an attribute of the instance. Keys, queries and values are those the layer
computed: nothing is projected twice.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from edge_atp.errors import BackendUnavailableError, ConfigError
from edge_atp.hf.family import Family, Host, ImageLayout, Tensor, VisionCall
from edge_atp.hf.hooks.installation import Installation
from edge_atp.hf.hooks.projections import Heads, ProjectionTap
from edge_atp.hf.hooks.projector import Chooser, Chosen
from edge_atp.pruning.schedule import Schedule
from edge_atp.types import Selection

# (modality, images of the call): notes which prompt each image belongs to.
ImageNotice = Callable[[str, Sequence[ImageLayout]], object]


@dataclass
class Tile:
    """One image or tile on its way through the encoder.

    place: (n,) int64, the patch each token without CLS stands at.
    sizes: (n + CLS,) float32 patches each token stands for.
    memory: what a rule keeps between layers.
    """

    place: Tensor
    sizes: Tensor
    memory: dict[str, Any] = field(default_factory=dict)


class EncoderRule(ABC):
    """A method that cuts inside the vision encoder.

    Class attributes:
        inside_layer: whether it cuts between attention and MLP, or behind the layer.
        needs_cls: whether it scores by the CLS token.
        weighs_sizes: whether attention counts a merged token as often as it has patches.
    """

    inside_layer = True
    needs_cls = True
    weighs_sizes = False

    @abstractmethod
    def watched(self, num_layers: int) -> tuple[int, ...]:
        """0-based layers the rule is called in; the first ``num_layers`` feed the projector."""

    @abstractmethod
    def schedule(self, num_patches: int) -> Schedule:
        """What each layer keeps."""

    @abstractmethod
    def cut(self, layer: int, schedule: Schedule, tile: Tile, states: Tensor, heads: Heads) -> Any:
        """Cut one tile in place of ``tile`` and return its (n', D) tokens, CLS first."""


class EncoderPruner(Chooser):
    """Hooks on the encoder's layers; the projector projects what is left."""

    def __init__(self, family: Family, host: Host, rule: EncoderRule, notice: ImageNotice) -> None:
        tower = host.vision
        if family.resamples:
            raise ConfigError(
                f"{family.name} resamples its tiles after the encoder, which needs all of their"
                " tokens; choose an interface-level method"
            )
        name = type(tower.module).__name__
        if rule.needs_cls and not tower.has_cls:
            raise ConfigError(
                f"the method scores by the CLS token, which {name} does not have; choose tome, or a"
                " method that cuts behind the encoder"
            )
        self._family = family
        self._host = host
        self._tower = tower
        self._rule = rule
        self._notice = notice
        self._layers = rule.watched(tower.feature_layer + 1)
        wrong = [layer for layer in self._layers if not 0 <= layer <= tower.feature_layer]
        if wrong:
            raise ConfigError(
                f"the method cuts in layers {', '.join(map(str, wrong))}, but the projector reads"
                f" layer {tower.feature_layer} of {name}; set the method's layers"
            )
        self._taps = {layer: ProjectionTap(self._attention(layer)) for layer in self._layers}
        for layer in self._layers:
            self._check(layer)
        self._tiles: list[Tile] = []
        self.num_patches = 0
        self._schedule = Schedule(())

    def install(self, installation: Installation) -> None:
        """Register the hooks."""
        installation.before(self._tower.layers[0], self._begin)
        for layer, tap in self._taps.items():
            tap.install(installation)
            module = self._tower.layers[layer]
            if self._rule.inside_layer:
                installation.wrap(module, "forward", self._halves(layer))
            else:
                # First, so that captured hidden states are those after the cut.
                installation.after(module, self._behind(layer), first=True)

    def choose(self, call: VisionCall, features: Tensor, embeds: Tensor | None) -> Chosen:
        """Everything that is left, at the places of the patches it stands for."""
        del embeds
        tiles, tokens = len(self._tiles), self.num_patches
        layouts = self._family.layout(self._host, call, tiles, tokens, per_tile=True)
        self._notice(call.modality, layouts)
        slots = torch.cat([tile.place + number * tokens for number, tile in enumerate(self._tiles)])
        selections = tuple(_selection(layout, slots) for layout in layouts)
        return Chosen(slots, features.flatten(0, 1), selections, (tiles, tokens))

    def clear(self) -> None:
        """Forget the call's tensors."""
        for tap in self._taps.values():
            tap.clear()
        self._tiles = []

    def _attention(self, layer: int) -> Any:
        return getattr(self._tower.layers[layer], self._tower.attention)

    def _check(self, layer: int) -> None:
        forward = inspect.signature(self._tower.layers[layer].forward).parameters
        if self._rule.inside_layer and "output_attentions" in forward:
            raise BackendUnavailableError(
                "cutting between attention and MLP needs layers that return one tensor: install"
                " transformers 5 or newer"
            )
        if not self._rule.weighs_sizes:
            return
        attention = self._attention(layer)
        implementation = getattr(attention.config, "_attn_implementation", "eager")
        accepts = "attention_mask" in inspect.signature(attention.forward).parameters
        if not accepts or implementation not in ("eager", "sdpa"):
            raise ConfigError(
                f"the method weighs attention by token size, which {type(attention).__name__} with"
                f" {implementation} attention cannot take; load the model with sdpa, or choose evit"
            )

    def _begin(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        if states.ndim != 3:
            raise ConfigError(
                f"{type(self._tower.module).__name__} packs images of any size into one sequence;"
                " in-ViT methods need equal tiles, choose an interface-level method"
            )
        count, device = states.shape[1], states.device
        self.num_patches = count - self._tower.has_cls
        self._schedule = self._rule.schedule(self.num_patches)
        self._tiles = [
            Tile(torch.arange(self.num_patches, device=device), torch.ones(count, device=device))
            for _ in range(len(states))
        ]

    def _halves(self, layer: int) -> Callable[..., Any]:
        tower, module = self._tower, self._tower.layers[layer]
        norm1, norm2 = (getattr(module, name) for name in tower.norms)
        attention = self._attention(layer)

        def forward(_original: Any, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            mask = args[0] if args else kwargs.pop("attention_mask", None)
            if self._rule.weighs_sizes:
                kwargs["attention_mask"] = self._size_bias(states, mask)
            elif mask is not None:
                kwargs["attention_mask"] = mask
            attended = attention(hidden_states=norm1(states), **kwargs)
            states = states + (attended[0] if isinstance(attended, tuple) else attended)
            states = self._cut(layer, states)
            return states + module.mlp(norm2(states))

        return forward

    def _behind(self, layer: int) -> Callable[..., Any]:
        def hook(_module: Any, _args: Any, _kwargs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (self._cut(layer, output[0]), *output[1:])
            return self._cut(layer, output)

        return hook

    def _cut(self, layer: int, states: Tensor) -> Tensor:
        heads = self._taps[layer].heads()
        with torch.no_grad():
            tiles = [
                self._rule.cut(layer, self._schedule, tile, tokens, Heads(*parts))
                for tile, tokens, *parts in zip(self._tiles, states, *heads, strict=True)
            ]
        self._taps[layer].clear()
        return torch.stack(tiles)

    def _size_bias(self, states: Tensor, mask: Tensor | None) -> Tensor | None:
        sizes = torch.stack([tile.sizes for tile in self._tiles])
        if sizes.shape[1] == self.num_patches + self._tower.has_cls:
            return mask
        bias = torch.log(sizes).to(states.dtype)[:, None, None, :]
        return bias if mask is None else bias + mask


def _selection(layout: ImageLayout, slots: Tensor) -> Selection:
    """The places of one image that are taken, counted over its groups."""
    own = torch.cat([group.tokens for group in layout.groups]).to(slots.device)
    kept = torch.isin(own, slots).nonzero()[:, 0]
    return Selection(kept_indices=kept, scores=None, order=kept)
