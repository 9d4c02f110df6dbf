"""Progressive ATP: the question's and the image's own attention in the layer entered, blended."""

from __future__ import annotations

from typing import Any

from edge_atp.hf.budget import Keep
from edge_atp.hf.hooks.attention_view import AttentionView
from edge_atp.hf.hooks.decoder import DecoderRule, Kept
from edge_atp.pruning.atp_progressive import rank


class Rule(DecoderRule):
    """Every stage ranks the tokens that are left."""

    def __init__(self, method: Any, keep: Keep | None) -> None:
        self._method = method
        self._keep = keep

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """The stages' layers."""
        return tuple(self._method.layers)

    def choose(self, layer: int, view: AttentionView, sample: int, num_visual: int) -> Kept:
        """Relevance from the text behind the image, saliency from the visual tokens."""
        budget = None if self._keep is None else self._keep.num_kept(num_visual)
        stage = self._method.schedule(num_visual, budget).at(layer)
        visual, text = view.visual_rows(sample), view.text_rows(sample)
        if len(text) == 0:  # nothing is asked: the last token stands for the text
            text = view.last_row(sample)
        relevance = view.rows(layer, sample, text, visual)
        saliency = view.rows(layer, sample, visual, visual)
        chosen = rank(relevance, saliency, stage.num_kept, self._method.alpha)
        return Kept(chosen.kept_indices)
