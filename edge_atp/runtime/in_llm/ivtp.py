"""IVTP's second stage in the engine: groups of decoder layers, ranked from the pseudo-CLS row.

The pseudo-CLS runs through the layers beside the real rows: it attends to everything up to the
last visual token, and nothing attends to it. Its position is that of the token behind the image.
"""

from __future__ import annotations

import numpy as np

from edge_atp.errors import ConfigError
from edge_atp.pruning.ivtp import rank
from edge_atp.pruning.schedule import Schedule, Stage
from edge_atp.runtime.in_llm.base import CutRule, Kept, LayerView
from edge_atp.runtime.in_llm.passed import PassedBlock
from edge_atp.runtime.outputs import Float, Prompt


class Rule(CutRule):
    """One cut before the layer behind each of the method's groups."""

    _side: Float
    _group: list[Float]
    _values: Float
    # The last layer before which tokens leave.
    _last: int

    def _plan(self, prompt: Prompt, num_kept: int | None) -> Schedule:
        """The schedule of one image, times the prompt's images."""
        cut = prompt.encoder_cut
        if cut is None:
            raise ConfigError(
                "ivtp starts in the vision encoder and needs its CLS token and the question:"
                " build the prompt with edge_atp.runtime.in_model, as Pipeline.answer does"
            )
        self._side, self._group = cut.side_row, []
        each = None if num_kept is None else -(-num_kept // cut.num_images)
        planned = self.pruner.schedule(cut.num_patches, each)
        left, stages, self._last = prompt.num_visual_tokens, [], 0
        for stage in planned.stages:
            kept = min(left, stage.num_kept * cut.num_images)
            self._last = stage.layer if kept < left else self._last
            left = kept
            stages.append(Stage(stage.layer, left))
        return Schedule(tuple(stages))

    @property
    def follows(self) -> int:
        """Every layer of every group up to the last cut; none where stage 1 left few enough."""
        return self._last

    def passed(self, block: PassedBlock) -> None:
        """Run the side row through the block and add its layers to the group's rollout."""
        if block.layers.start % self.pruner.group_size == 0:
            self._group = []
        step = block.side_step(self._side)
        self._side = step.state
        self._group.extend(step.attention[layer] for layer in block.layers)
        self._values = block.values(block.layers[-1], block.rows_to_last_visual)

    def choose(self, view: LayerView, stage: Stage) -> Kept:
        """Rank the group's visual tokens by what the side row has seen of them."""
        rows = self._values.shape[1]
        kept = rank(self._group, self._values, rows, view.visual_rows, stage.num_kept).kept_indices
        return Kept(np.asarray(kept))
