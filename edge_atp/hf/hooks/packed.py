"""Dropping visual tokens that are resampled between projector and language model.

Behind an interpolation no token is a patch any more. The signals of the patches are resampled by
the same function of the model, so that every token is scored by what it is made of, and tokens are
dropped at the end of the vision call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from edge_atp.hf.budget import Keep
from edge_atp.hf.family import Family, Host, ImageLayout, Tensor, TokenGroup, VisionCall
from edge_atp.hf.hooks.installation import Installation
from edge_atp.hf.hooks.selection import QuestionLookup, choose_image
from edge_atp.hf.hooks.signals import CallSignals, SignalSource
from edge_atp.hf.tiles import NEWLINE, drop_idle_newlines, packed_features, rectangle
from edge_atp.pruning.base import Pruner
from edge_atp.types import Selection

_ROWS = ("patch_features", "patch_embeds", "patch_keys")
_COLUMNS = ("cls_attention", "received_attention")


class PackedCut:
    """Hooks on the vision calls of a family that resamples."""

    def __init__(
        self,
        family: Family,
        host: Host,
        pruner: Pruner,
        keep: Keep,
        source: SignalSource,
        questions: QuestionLookup,
    ) -> None:
        self._family = family
        self._host = host
        self._pruner = pruner
        self._keep = keep
        self._source = source
        self._questions = questions
        self._features: Tensor | None = None
        self.selections: tuple[Selection, ...] = ()

    def install(self, installation: Installation) -> None:
        """Register the hooks."""
        installation.before(self._host.projector, self._keep_features)
        for modality in ("image", "video"):
            name = f"get_{modality}_features"
            if hasattr(self._host.inner, name):
                installation.wrap(self._host.inner, name, self._vision_call(modality))

    def _keep_features(self, _module: Any, args: tuple[Any, ...], _kwargs: Any) -> None:
        self._features = args[0]

    def _vision_call(self, modality: str) -> Callable[..., Any]:
        def wrapper(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            arguments = inspect.signature(original).bind_partial(*args, **kwargs).arguments
            call = VisionCall(modality, {**arguments, **arguments.get("kwargs", {})})
            try:
                output = original(*args, **kwargs)
                with torch.no_grad():
                    self._drop(call, output)
            finally:
                self._features = None
                self._source.tap.clear()
            return output

        return wrapper

    def _drop(self, call: VisionCall, output: Any) -> None:
        """Mark what is not chosen as NaN."""
        features = self._features
        assert features is not None  # the projector ran in this call
        images = list(packed_features(output))
        tiles, tokens = features.shape[:2]
        numbers = [
            _numbered(image) for image in self._pack(call, features.new_zeros(tiles * tokens, 1))
        ]
        layouts, start = [], 0
        for own in numbers:
            base = self._family.first_tokens(self._host, call, tokens)
            layouts.append(_layout(own, start, base, self._keep.per_tile))
            start += len(own)
        embeds = torch.cat(images)
        signals = self._signals(call, features, embeds)
        questions = self._questions(call.modality, layouts)
        picks = [
            choose_image(self._pruner, self._keep, layout, signals, question)
            for layout, question in zip(layouts, questions, strict=True)
        ]
        full = torch.full_like(embeds, torch.nan)
        for pick in picks:
            rows = embeds[pick.slots] if pick.tokens is None else pick.tokens.to(embeds.dtype)
            full[pick.slots] = rows
        newlines = torch.cat(numbers) == NEWLINE
        full[newlines] = embeds[newlines]
        pruned = list(full.split([len(image) for image in images]))
        for image, own in zip(pruned, numbers, strict=True):
            drop_idle_newlines(image, own, self._family.first_tokens(self._host, call, tokens))
        stacked = isinstance(output.pooler_output, torch.Tensor)
        output.pooler_output = torch.stack(pruned) if stacked else pruned
        self.selections = tuple(pick.selections[0] for pick in picks)

    def _signals(self, call: VisionCall, features: Tensor, embeds: Tensor) -> CallSignals:
        """Resampled signals of all packed tokens; newline rows are NaN and never asked for."""
        raw = self._source.collect(call, features, None)
        packed: dict[str, Any] = {}
        for name in (*_ROWS, *_COLUMNS):
            value = getattr(raw, name)
            if value is None:
                continue
            rows = value if name in _ROWS else value.transpose(0, 1)
            rows = torch.cat(self._pack(call, rows))
            packed[name] = rows if name in _ROWS else rows.transpose(0, 1)
        # Merging methods merge what the language model reads.
        packed |= {"patch_features": embeds, "image_embeds": embeds, "tokens": len(embeds)}
        if self._source.text_tower is not None and self._source.text_tower.in_language_model:
            packed["patch_embeds"] = embeds
        return replace(raw, cls_key=None, cls_feature=None, **packed)

    def _pack(self, call: VisionCall, rows: Tensor) -> list[Tensor]:
        return self._family.pack(self._host, call, rows)


def _numbered(packed: Tensor) -> Tensor:
    """(n,) int64: a token's place in its image, NEWLINE where the packed row is NaN."""
    places = torch.arange(len(packed), device=packed.device)
    return places.masked_fill(torch.isnan(packed[:, 0]), NEWLINE)


def _layout(numbers: Tensor, start: int, base: int, per_tile: bool) -> ImageLayout:
    """The base view and the stitched tiles as groups, or one group for all.

    Args:
        numbers: (n,) from ``_numbered``.
        start: packed tokens of the call before this image.
        base: tokens of the base view (or of each frame).
    """
    tokens = numbers[numbers != NEWLINE]
    if not per_tile:
        grid = rectangle(base) if len(tokens) == base else None  # one view is all there is
        return ImageLayout((TokenGroup(tokens + start, grid),), len(numbers))
    newlines = numbers == NEWLINE
    if int(newlines.sum()) > 1:  # rows of stitched tiles behind the base view
        parts, rows = [tokens[:base], tokens[base:]], int(newlines.sum())
        grids = [rectangle(len(parts[0])), rectangle(len(parts[1]), rows)]
    else:
        parts = list(tokens.split(base))
        grids = [rectangle(len(part)) for part in parts]
    groups = [TokenGroup(part + start, grid) for part, grid in zip(parts, grids, strict=True)]
    return ImageLayout(tuple(groups), len(numbers))
