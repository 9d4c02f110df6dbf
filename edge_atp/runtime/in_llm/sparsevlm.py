"""SparseVLM in the engine: words that the image makes relevant rate the visual tokens.

The attention is that of the layer entered. Recycled tokens take the last dropped places, so they
stand behind the image's rows and in front of the question, and are rated with the others later.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_atp.pruning.schedule import Schedule, Stage
from edge_atp.pruning.sparsevlm import keep_count, rank, raters, recycle
from edge_atp.runtime.in_llm.base import CutRule, Kept, LayerView
from edge_atp.runtime.outputs import Prompt


class Rule(CutRule):
    """Raters are chosen once, on the language model's inputs."""

    # Which of the text tokens behind the first visual one rate; none: the last token does.
    _raters: NDArray[np.int64]

    def _plan(self, prompt: Prompt, num_kept: int | None) -> Schedule:
        flags = prompt.is_visual
        assert flags is not None  # an in-LLM method is refused without
        question = ~flags & (np.cumsum(flags) > 0)
        self._raters = np.zeros(0, np.int64)
        if question.any():
            embeds = prompt.inputs_embeds
            self._raters = raters(embeds[flags], embeds[question])
        return super()._plan(prompt, num_kept)

    def choose(self, view: LayerView, stage: Stage) -> Kept:
        """Keep the best rated tokens and recycle some of the others."""
        queries = view.question_rows[self._raters] if len(self._raters) else view.last_row
        rows = view.attention(queries)
        count = stage.num_kept
        if self.pruner.adaptive:
            count = keep_count(rows, self.pruner.rank_scale, count)
        selection = rank(rows, count)
        dropped = np.ones(rows.shape[-1], np.bool_)
        dropped[selection.kept_indices] = False
        share = self.pruner.recycle_share
        if not share or not dropped.any():
            return Kept(selection.kept_indices)
        tokens, scores = view.hidden[view.visual_rows[dropped]], np.asarray(selection.scores)
        return Kept(selection.kept_indices, recycle(tokens, scores[dropped], share))
