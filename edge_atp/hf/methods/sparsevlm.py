"""SparseVLM: words that the image makes relevant rate the visual tokens, stage by stage.

The attention is that of the layer entered. Recycled tokens take the last dropped places, so they
stand behind the image's rows and in front of the question, and are rated with the others later.
"""

from __future__ import annotations

from typing import Any

import torch

from edge_atp.hf.budget import Keep
from edge_atp.hf.family import Tensor
from edge_atp.hf.hooks.attention_view import AttentionView
from edge_atp.hf.hooks.decoder import DecoderRule, Kept
from edge_atp.pruning.sparsevlm import keep_count, rank, raters, recycle


class Rule(DecoderRule):
    """Raters are chosen once, on the language model's inputs."""

    def __init__(self, method: Any, keep: Keep | None) -> None:
        self._method = method
        self._keep = keep
        # Per prompt: which of the text tokens behind the image rate.
        self._raters: dict[int, Tensor] = {}

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """The stages' layers."""
        return tuple(self._method.layers)

    def start(self, view: AttentionView, embeds: Tensor) -> None:
        """Choose the raters of every prompt."""
        self._raters = {}
        for sample in range(len(embeds)):
            visual, text = view.visual_rows(sample), view.text_rows(sample)
            if len(visual) and len(text):
                self._raters[sample] = raters(embeds[sample, visual], embeds[sample, text])

    def choose(self, layer: int, view: AttentionView, sample: int, num_visual: int) -> Kept:
        """Keep the best rated tokens and recycle some of the others."""
        visual = view.visual_rows(sample)
        if sample not in self._raters:  # nothing is asked: the last token rates
            queries = view.last_row(sample)
        else:
            queries = view.text_rows(sample)[self._raters[sample]]
        rows = view.rows(layer, sample, queries, visual)
        count = self._count(layer, rows, num_visual)
        selection = rank(rows, count)
        dropped = torch.ones(len(visual), dtype=torch.bool, device=visual.device)
        dropped[selection.kept_indices] = False
        share = self._method.recycle_share
        if not share or not bool(dropped.any()):
            return Kept(selection.kept_indices)
        tokens = view.states(sample)[visual[dropped]]
        scores: Any = selection.scores
        return Kept(selection.kept_indices, recycle(tokens, scores[dropped], share))

    def _count(self, layer: int, rows: Tensor, num_visual: int) -> int:
        budget = None if self._keep is None else self._keep.num_kept(num_visual)
        planned = min(self._method.schedule(num_visual, budget).at(layer).num_kept, rows.shape[-1])
        if not self._method.adaptive:
            return int(planned)
        return keep_count(rows, self._method.rank_scale, planned)
