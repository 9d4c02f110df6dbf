"""Dropping visual tokens around the projector.

Dropped tokens never reach the projector where the method can choose before it. They leave the
vision call as NaN rows: the model's own placeholder bookkeeping (packing, beams, chunked prefill)
then stays valid, and the language model's hook removes exactly those rows before the first layer.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from edge_atp.errors import ConfigError, ShapeError
from edge_atp.hf.family import Family, Host, Tensor, VisionCall
from edge_atp.hf.hooks.installation import Installation
from edge_atp.types import Selection


@dataclass(frozen=True)
class Chosen:
    """What one vision call keeps.

    slots: (S,) int64, places of the kept tokens among all ``shape`` tokens.
    tokens: (S, D) what to put there where that is not the token itself, else None.
    selections: per image.
    shape: tiles, and tokens of each.
    """

    slots: Tensor
    tokens: Tensor | None
    selections: tuple[Selection, ...]
    shape: tuple[int, int]


class Chooser(ABC):
    """Decides what a vision call keeps.

    before_projector: whether it can decide before the projector ran.
    """

    before_projector: bool = True

    @abstractmethod
    def choose(self, call: VisionCall, features: Tensor, embeds: Tensor | None) -> Chosen:
        """Choose among (T, n, D) projector inputs, or their (T, n, H) projections."""

    def clear(self) -> None:
        """The call is over: forget what was captured of it."""


class ProjectorCut:
    """Hooks on the projector and on the calls that run vision encoder and projector."""

    def __init__(self, family: Family, host: Host, chooser: Chooser) -> None:
        self._family = family
        self._host = host
        self._chooser = chooser
        self._call: VisionCall | None = None
        self._features: Tensor | None = None
        self._chosen: Chosen | None = None
        self.selections: tuple[Selection, ...] = ()

    def install(self, installation: Installation) -> None:
        """Register the hooks."""
        installation.before(self._host.projector, self._before_projector)
        installation.after(self._host.projector, self._after_projector)
        for modality in ("image", "video"):
            name = f"get_{modality}_features"
            if hasattr(self._host.inner, name):
                installation.wrap(self._host.inner, name, self._vision_call(modality))

    def _vision_call(self, modality: str) -> Callable[..., Any]:
        def wrapper(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            arguments = inspect.signature(original).bind_partial(*args, **kwargs).arguments
            call = VisionCall(modality, {**arguments, **arguments.get("kwargs", {})})
            self._call = call
            try:
                output = original(*args, **kwargs)
                self._family.finish(self._host, call, output)
            finally:
                self._call = self._features = self._chosen = None
                self._chooser.clear()
            return output

        return wrapper

    def _before_projector(self, _module: Any, args: Any, kwargs: Any) -> Any:
        """Cut the projector's input to the kept tokens."""
        features = args[0]
        self._features = features
        if not self._chooser.before_projector:
            return None
        tokens = self._as_tokens(features)
        chosen = self._choose(tokens, None)
        cut = tokens.flatten(0, 1)[chosen.slots] if chosen.tokens is None else chosen.tokens
        rows = cut.to(features.dtype).reshape(-1, features.shape[-1])
        return (rows[None] if features.ndim == 3 else rows, *args[1:]), kwargs

    def _after_projector(self, _module: Any, _args: Any, _kwargs: Any, output: Tensor) -> Tensor:
        """Put the kept tokens back in their places, NaN in all others."""
        if self._chooser.before_projector:
            chosen = self._chosen
            rows = output.reshape(-1, output.shape[-1])
        else:
            embeds = output if output.ndim == 3 else output[None]
            chosen = self._choose(self._as_tokens(self._features), embeds)
            rows = embeds.flatten(0, 1)[chosen.slots] if chosen.tokens is None else chosen.tokens
        assert chosen is not None  # set by the hook before the projector
        if bool(torch.isnan(rows[:, 0]).any()):
            raise ShapeError("the projected visual tokens contain NaN; check the model's precision")
        tiles, tokens = chosen.shape
        full = output.new_full((tiles * tokens, rows.shape[-1]), torch.nan)
        full[chosen.slots] = rows.to(full.dtype)
        return full.view(tiles, tokens, -1) if output.ndim == 3 else full

    def _as_tokens(self, features: Any) -> Tensor:
        """Projector input as (T, n, D), the patches of a token concatenated."""
        size = self._host.patches_per_token
        tokens = features if features.ndim == 3 else features[None]
        return tokens.reshape(tokens.shape[0], -1, size * tokens.shape[-1])

    def _choose(self, features: Tensor, embeds: Tensor | None) -> Chosen:
        if self._call is None:
            raise ConfigError(
                "the projector ran outside get_image_features/get_video_features, so its tokens"
                " cannot be told apart; call edge_atp.hf.detach(model) first"
            )
        chosen = self._chooser.choose(self._call, features, embeds)
        self._chosen, self.selections = chosen, chosen.selections
        return chosen
