"""Choosing the tokens of one vision call with an interface-level method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from edge_atp.errors import ShapeError
from edge_atp.hf.budget import Keep
from edge_atp.hf.family import ImageLayout, Tensor, TokenGroup, VisionCall
from edge_atp.hf.hooks.projector import Chooser, Chosen
from edge_atp.hf.hooks.signals import CallSignals, QuestionSignals, SignalSource
from edge_atp.pruning.base import Pruner
from edge_atp.types import Selection

# (modality, images of the call) -> the question of each.
QuestionLookup = Callable[[str, Sequence[ImageLayout]], list[QuestionSignals]]


class MethodChooser(Chooser):
    """Runs the method on every group of tokens that has its own budget."""

    def __init__(
        self,
        pruner: Pruner,
        keep: Keep,
        source: SignalSource,
        questions: QuestionLookup,
        before_projector: bool,
    ) -> None:
        self.before_projector = before_projector
        self._pruner = pruner
        self._keep = keep
        self._source = source
        self._questions = questions

    def choose(self, call: VisionCall, features: Tensor, embeds: Tensor | None) -> Chosen:
        """Select in every image of the call."""
        source = self._source
        tiles, tokens = features.shape[:2]
        layouts = source.family.layout(source.host, call, tiles, tokens, self._keep.per_tile)
        questions = self._questions(call.modality, layouts)
        with torch.no_grad():
            signals = source.collect(call, features, embeds)
            picks = [
                choose_image(self._pruner, self._keep, layout, signals, question)
                for layout, question in zip(layouts, questions, strict=True)
            ]
        return _concatenate(picks, (tiles, tokens))

    def clear(self) -> None:
        """Forget the encoder's captured tensors."""
        self._source.tap.clear()


def choose_image(
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
    return Chosen(torch.cat(slots), tokens, (_join(parts),), (0, 0))


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


def _concatenate(picks: list[Chosen], shape: tuple[int, int]) -> Chosen:
    slots = torch.cat([pick.slots for pick in picks])
    tokens = [pick.tokens for pick in picks]
    merged = None if tokens[0] is None else torch.cat(tokens)
    # Groups of different images may interleave in the projector's order.
    order = torch.argsort(slots, stable=True)
    return Chosen(
        slots[order],
        None if merged is None else merged[order],
        tuple(selection for pick in picks for selection in pick.selections),
        shape,
    )
