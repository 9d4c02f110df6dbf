"""Pruning between the vision encoder and the language model.

Dropped tokens never reach the projector where the method can choose before it. They leave the
vision call as NaN rows: the model's own placeholder bookkeeping (packing, beams, chunked prefill)
then stays valid, and the language model's hook removes exactly those rows before the first layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from edge_atp.errors import ConfigError, ShapeError
from edge_atp.hf.budget import Keep
from edge_atp.hf.family import Family, Host, ImageLayout, Tensor, TokenGroup, VisionCall
from edge_atp.hf.hooks.installation import Installation
from edge_atp.hf.hooks.signals import CallSignals, QuestionSignals, SignalSource
from edge_atp.pruning.base import Pruner
from edge_atp.types import Selection

# (images of the call) -> the question of each.
QuestionLookup = Callable[[str, Sequence[ImageLayout]], list[QuestionSignals]]


@dataclass(frozen=True)
class Chosen:
    """What one vision call keeps.

    slots: (S,) int64, projector tokens that stay, ascending.
    tokens: (S, D) their features where the method merges tokens, else None.
    selections: per image.
    """

    slots: Tensor
    tokens: Tensor | None
    selections: tuple[Selection, ...]


class InterfacePruner:
    """Hooks on the projector and on the calls that run vision encoder and projector."""

    def __init__(
        self,
        family: Family,
        host: Host,
        pruner: Pruner,
        keep: Keep,
        source: SignalSource,
        questions: QuestionLookup,
        before_projector: bool,
    ) -> None:
        self._family = family
        self._host = host
        self._pruner = pruner
        self._keep = keep
        self._source = source
        self._questions = questions
        self._before = before_projector
        self._call: VisionCall | None = None
        self._features: Tensor | None = None
        self._chosen: Chosen | None = None
        self.selections: tuple[Selection, ...] = ()
        self.layouts: tuple[ImageLayout, ...] = ()

    def install(self, installation: Installation) -> None:
        """Register the hooks."""
        self._source.tap.install(installation)
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
                self._call = None
                self._features = self._chosen = None
                self._source.tap.clear()
            return output

        return wrapper

    def _before_projector(self, _module: Any, args: Any, kwargs: Any) -> Any:
        """Cut the projector's input to the kept tokens."""
        if self._call is None:
            raise ConfigError(
                "the projector ran outside get_image_features/get_video_features, so its tokens"
                " cannot be told apart; call edge_atp.hf.detach(model) first"
            )
        features = args[0]
        self._features = features
        if not self._before:
            return None
        tokens = self._as_tokens(features)
        self._chosen = self._choose(tokens, None)
        cut = tokens.flatten(0, 1)[self._chosen.slots]
        if self._chosen.tokens is not None:
            cut = self._chosen.tokens.to(features.dtype)
        return (self._as_input(cut, features), *args[1:]), kwargs

    def _after_projector(self, _module: Any, _args: Any, _kwargs: Any, output: Tensor) -> Tensor:
        """Put the kept tokens back in their places, NaN in all others."""
        chosen = self._chosen
        if chosen is None:
            embeds = output if output.ndim == 3 else output[None]
            tiles, tokens = embeds.shape[:2]
            chosen = self._choose(self._as_tokens(self._features), embeds)
            rows = embeds.flatten(0, 1)[chosen.slots]
            if chosen.tokens is not None:
                rows = chosen.tokens.to(rows.dtype)
        else:
            tiles, tokens = self._as_tokens(self._features).shape[:2]
            rows = output.reshape(-1, output.shape[-1])
        if bool(torch.isnan(rows[:, 0]).any()):
            raise ShapeError("the projected visual tokens contain NaN; check the model's precision")
        full = rows.new_full((tiles * tokens, rows.shape[-1]), torch.nan)
        full[chosen.slots] = rows
        return full.view(tiles, tokens, -1) if output.ndim == 3 else full

    def _as_tokens(self, features: Any) -> Tensor:
        """Projector input as (T, n, D), the patches of a token concatenated."""
        size = self._host.patches_per_token
        tokens = features if features.ndim == 3 else features[None]
        return tokens.reshape(tokens.shape[0], -1, size * tokens.shape[-1])

    def _as_input(self, tokens: Tensor, like: Tensor) -> Tensor:
        rows = tokens.reshape(-1, like.shape[-1])
        return rows[None] if like.ndim == 3 else rows

    def _choose(self, features: Tensor, embeds: Tensor | None) -> Chosen:
        call = self._call
        assert call is not None  # the projector's hook checked it
        tiles, tokens = features.shape[:2]
        layouts = self._family.layout(self._host, call, tiles, tokens, self._keep.per_tile)
        questions = self._questions(call.modality, layouts)
        with torch.no_grad():
            signals = self._source.collect(call, features, embeds)
            picks = [
                _choose_image(self._pruner, self._keep, layout, signals, question)
                for layout, question in zip(layouts, questions, strict=True)
            ]
        self.layouts = tuple(layouts)
        self.selections = tuple(pick.selections[0] for pick in picks)
        return _concatenate(picks, self.selections)


def _choose_image(
    pruner: Pruner,
    keep: Keep,
    layout: ImageLayout,
    signals: CallSignals,
    question: QuestionSignals,
) -> Chosen:
    """Select in every group of one image."""
    slots, merged, parts, offset = [], [], [], 0
    for group in layout.groups:
        inputs = signals.of(group, question)
        selection = pruner.select(inputs, keep.num_kept(len(group.tokens)))
        slots.append(_slots(group, selection))
        merged.append(selection.merged)
        parts.append(_shifted(selection, offset))
        offset += len(group.tokens)
    tokens = None if merged[0] is None else torch.cat(merged)
    return Chosen(torch.cat(slots), tokens, (_join(parts),))


def _slots(group: TokenGroup, selection: Selection) -> Tensor:
    """Projector tokens that a selection's output takes, ascending.

    A method that adds tokens beside the kept ones (a fused one, CLS) takes the group's last
    unused places for them.
    """
    kept = selection.kept_indices.to(group.tokens.device)
    count = len(kept) if selection.merged is None else len(selection.merged)
    extra = count - len(kept)
    if extra > 0:
        free = torch.ones(len(group.tokens), dtype=torch.bool, device=kept.device)
        free[kept] = False
        unused = free.nonzero()[:, 0]
        if len(unused) < extra:
            raise ShapeError(
                f"the method gives {count} tokens for {len(group.tokens)} places; keep fewer"
            )
        kept = torch.cat((kept, unused[-extra:])).sort().values
    elif extra < 0:
        kept = kept[:count]
    return group.tokens[kept]


def _shifted(selection: Selection, offset: int) -> Selection:
    if offset == 0:
        return selection
    return replace(
        selection,
        kept_indices=selection.kept_indices + offset,
        order=selection.order + offset,
    )


def _join(parts: list[Selection]) -> Selection:
    """One selection over the concatenated groups of an image."""
    if len(parts) == 1:
        return parts[0]
    merged = [part.merged for part in parts]
    scores = [part.scores for part in parts]
    return Selection(
        kept_indices=torch.cat([part.kept_indices for part in parts]),
        scores=None if any(s is None for s in scores) else torch.cat(scores),
        order=torch.cat([part.order for part in parts]),
        merged=None if any(m is None for m in merged) else torch.cat(merged),
    )


def _concatenate(picks: list[Chosen], selections: tuple[Selection, ...]) -> Chosen:
    slots = torch.cat([pick.slots for pick in picks])
    tokens = [pick.tokens for pick in picks]
    merged = None if tokens[0] is None else torch.cat(tokens)
    # Groups of different images may interleave in the projector's order.
    order = torch.argsort(slots, stable=True)
    return Chosen(slots[order], None if merged is None else merged[order], selections)
