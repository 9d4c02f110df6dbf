"""A decoder in blocks of layers, each with a KV cache of its own length.

Prefill runs block by block; before a scheduled layer the rule chooses which visual tokens go on,
and later layers hold and attend to those alone. Decoding then runs every block over its own
cache. Without a plan it computes exactly what the single decoder graph does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import ConfigError
from edge_atp.pruning.schedule import Schedule, Stage
from edge_atp.runtime.in_llm.base import CutRule, LayerView
from edge_atp.runtime.manifest import LlmSpec
from edge_atp.runtime.outputs import Float
from edge_atp.runtime.sessions.base import Arrays, Session, StateBuffers


@dataclass(frozen=True)
class CutPlan:
    """When and how visual tokens are cut during one prefill.

    is_visual: (S,) bool, over the prompt.
    """

    schedule: Schedule
    rule: CutRule
    is_visual: NDArray[np.bool_]


@dataclass
class _Rows:
    """The sequence between two blocks.

    visual_place: place of each remaining visual token among all visual ones.
    """

    hidden: Float
    position_ids: NDArray[np.int64]
    is_visual: NDArray[np.bool_]
    visual_place: NDArray[np.int64]


class BlockDecoder:
    """Implements ``kv_cache.KvCache`` on blocks; ``plan`` applies to the next prefill."""

    def __init__(
        self, blocks: Sequence[Session], open_probe: Callable[[int], Session], llm: LlmSpec
    ) -> None:
        self._blocks = tuple(blocks)
        self._open_probe = open_probe
        self._probes: dict[int, Session] = {}
        self._llm = llm
        self._lengths = [0] * len(self._blocks)
        # Position of the next token as each block numbers it.
        self._next_position = [0] * len(self._blocks)
        self._decoded = 0
        self._state = [self._allocate(number) for number in range(len(self._blocks))]
        self.plan: CutPlan | None = None
        self.kept: dict[int, NDArray[np.int64]] = {}

    # A cut chooses among all visual tokens of a prompt, so a prompt is entered as a whole.
    can_resume = False

    @property
    def length(self) -> int:
        """Positions of the first block, which holds the whole sequence."""
        return self._lengths[0]

    @property
    def num_bytes(self) -> int:
        """Memory of all caches."""
        return sum(state.num_bytes for state in self._state)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Positions that each block holds."""
        return tuple(self._lengths)

    def truncate(self, length: int) -> None:
        """Forget decoded tokens down to ``length`` positions of the first block, or everything.

        Raises:
            ConfigError: that would cut into the prompt, which blocks hold in different lengths.
        """
        removed = self._lengths[0] - length
        if removed <= 0:
            return
        if length and removed > self._decoded:
            raise ConfigError(
                f"a block decoder can forget its {self._decoded} decoded tokens or everything,"
                f" not {removed} tokens"
            )
        if not length:
            self._lengths = [0] * len(self._blocks)
            self._next_position = [0] * len(self._blocks)
            self._decoded = 0
            return
        self._lengths = [count - removed for count in self._lengths]
        self._next_position = [position - removed for position in self._next_position]
        self._decoded -= removed

    def copy_out(self) -> Arrays:
        """Not offered: blocks hold different lengths.

        Raises:
            ConfigError: always; see ``can_resume``.
        """
        raise ConfigError("a decoder in blocks cannot hand out its KV cache; export as one graph")

    def copy_in(self, arrays: Arrays, length: int) -> None:
        """Not offered; see ``copy_out``.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("a decoder in blocks cannot take in a KV cache; export as one graph")

    def forward(self, inputs_embeds: Float) -> Float:
        """Append (S, H) tokens; returns the logits (vocab,) of the last one.

        Raises:
            ConfigError: the plan cuts where this export has no block boundary.
        """
        if self._lengths[0] == 0:
            return self._prefill(inputs_embeds)
        self._decoded += len(inputs_embeds)
        hidden = inputs_embeds
        for number in range(len(self._blocks)):
            start = self._next_position[number]
            positions = np.arange(start, start + len(hidden), dtype=np.int64)
            hidden = self._run(number, hidden, positions)
        return hidden

    def _prefill(self, inputs_embeds: Float) -> Float:
        length = len(inputs_embeds)
        plan, self.kept = self.plan, {}
        is_visual = plan.is_visual if plan else np.zeros(length, np.bool_)
        rows = _Rows(
            inputs_embeds,
            np.arange(length, dtype=np.int64),
            is_visual,
            np.arange(int(is_visual.sum())),
        )
        if plan:
            self._check(plan)
        scoring: dict[int, LayerView] = {}
        for number in range(len(self._blocks)):
            layer = number * self._llm.block_layers
            if plan:
                scoring[layer] = self._view(layer, rows)
                if stage := plan.schedule.at(layer):
                    self._cut(rows, stage, plan.rule, scoring[layer + plan.rule.scoring_offset])
            rows.hidden = self._run(number, rows.hidden, rows.position_ids)
        return rows.hidden

    def _cut(self, rows: _Rows, stage: Stage, rule: CutRule, view: LayerView) -> None:
        """Drop the visual rows that the rule does not choose."""
        if stage.num_kept < int(rows.is_visual.sum()):
            chosen = rule.choose(view, stage)
            keep = ~rows.is_visual
            keep[np.flatnonzero(rows.is_visual)[chosen]] = True
            rows.hidden = rows.hidden[keep]
            rows.position_ids = rows.position_ids[keep]
            rows.is_visual = rows.is_visual[keep]
            rows.visual_place = rows.visual_place[chosen]
            if rule.renumber:
                rows.position_ids = np.arange(len(rows.hidden), dtype=np.int64)
        self.kept[stage.layer] = rows.visual_place

    def _run(self, number: int, hidden: Float, positions: NDArray[np.int64]) -> Float:
        total = self._lengths[number] + len(hidden)
        last = number == len(self._blocks) - 1
        name = "logits" if last else "next_hidden"
        outputs = self._blocks[number].run_in_place(
            {
                "hidden": np.ascontiguousarray(hidden)[None],
                "position_ids": positions[None],
                "seqlens_k": np.array([total - 1], np.int32),
                "total_sequence_length": np.array(total, np.int32),
            },
            self._state[number],
            (name,),
        )
        self._lengths[number] = total
        self._next_position[number] = int(positions[-1]) + 1
        result: Float = outputs[name][0]
        return result

    def _view(self, layer: int, rows: _Rows) -> LayerView:
        return LayerView(layer, rows.hidden, rows.position_ids, rows.is_visual, self._probe)

    def _probe(
        self, layer: int, hidden: Float, positions: NDArray[np.int64], wanted: NDArray[np.int64]
    ) -> tuple[Float, Float]:
        if layer not in self._probes:
            self._probes[layer] = self._open_probe(layer)
        outputs = self._probes[layer].run(
            {"hidden": hidden[None], "position_ids": positions[None], "rows": wanted}
        )
        return outputs["queries"], outputs["keys"]

    def _check(self, plan: CutPlan) -> None:
        size, layers = self._llm.block_layers, self._llm.layers
        for layer in plan.schedule.layers:
            for needed in {layer, layer + plan.rule.scoring_offset}:
                if needed % size or not 0 <= needed < layers:
                    raise ConfigError(
                        f"{plan.rule.pruner.name} cuts before layer {layer} and looks into layer"
                        f" {needed}; this model has {layers} layers exported {size} to a block."
                        " Choose layers at block boundaries, or export with --block-layers 1"
                    )

    def _allocate(self, number: int) -> StateBuffers:
        first = number * self._llm.block_layers
        end = min(first + self._llm.block_layers, self._llm.layers)
        aliases = {
            f"past.{i}.{kind}": f"present.{i}.{kind}"
            for i in range(first, end)
            for kind in ("key", "value")
        }
        shape = (1, self._llm.kv_heads, self._llm.max_kv, self._llm.head_dim)
        return self._blocks[number].allocate_state(aliases, shape, np.float32)
