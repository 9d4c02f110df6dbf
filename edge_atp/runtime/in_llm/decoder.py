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
from edge_atp.pruning.schedule import Stage
from edge_atp.runtime.in_llm.base import CutRule, LayerView, OnLap
from edge_atp.runtime.in_llm.caches import BlockCache, make_block_cache
from edge_atp.runtime.in_llm.passed import PassedBlock
from edge_atp.runtime.manifest import LlmSpec
from edge_atp.runtime.outputs import Float, Prompt
from edge_atp.runtime.sessions.base import Arrays, Session


@dataclass(frozen=True)
class CutPlan:
    """When and how visual tokens are cut during one prefill.

    rule: None where only the prompt's positions matter.
    is_visual: (S,) bool, and position_ids: (S,) int64, over the prompt.
    """

    rule: CutRule | None
    is_visual: NDArray[np.bool_]
    position_ids: NDArray[np.int64]
    on_lap: OnLap | None = None

    @classmethod
    def of(cls, prompt: Prompt, rule: CutRule | None, on_lap: OnLap | None = None) -> CutPlan:
        """The plan for a prompt that says which of its tokens are visual."""
        length = len(prompt.inputs_embeds)
        flags = np.zeros(length, np.bool_) if prompt.is_visual is None else prompt.is_visual
        positions = prompt.position_ids
        return cls(rule, flags, np.arange(length) if positions is None else positions, on_lap)


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
    """Implements ``kv_cache.KvCache`` on blocks; ``plan`` applies to the next prefill.

    Attributes:
        kept: cut layer -> visual tokens of the last prompt that entered it, recycled ones apart.
        num_visual: visual rows behind the last cut, recycled ones included.
    """

    def __init__(
        self,
        blocks: Sequence[Session],
        open_probe: Callable[[int], Session],
        llm: LlmSpec,
        dialect: str = "ort-gqa",
        exposes_queries: bool = True,
    ) -> None:
        """
        Args:
            blocks: one session per block, in order.
            open_probe: opens ``probe.<layer>`` of a block's first layer, when it is first needed.
            exposes_queries: whether blocks put out ``queries.<layer>``.
        """
        size = llm.block_layers
        self._blocks: tuple[BlockCache, ...] = tuple(
            make_block_cache(dialect, session, llm, range(first, min(first + size, llm.layers)))
            for session, first in zip(blocks, range(0, llm.layers, size), strict=True)
        )
        self._exposes_queries = exposes_queries
        self._open_probe = open_probe
        self._probes: dict[int, Session] = {}
        self._llm = llm
        # Position of the next token as each block numbers it.
        self._next_position = [0] * len(self._blocks)
        self._decoded = 0
        self.plan: CutPlan | None = None
        self.kept: dict[int, NDArray[np.int64]] = {}
        self.num_visual = 0

    # A cut chooses among all visual tokens of a prompt, so a prompt is entered as a whole.
    can_resume = False
    truncates_freely = False

    @property
    def length(self) -> int:
        """Positions of the first block, which holds the whole sequence."""
        return self._blocks[0].length

    @property
    def num_bytes(self) -> int:
        """Memory of all caches."""
        return sum(block.num_bytes for block in self._blocks)

    @property
    def held_bytes(self) -> int:
        """Memory of the positions that the caches really hold."""
        return sum(block.held_bytes for block in self._blocks)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Positions that each block holds."""
        return tuple(block.length for block in self._blocks)

    def truncate(self, length: int) -> None:
        """Forget decoded tokens down to ``length`` positions of the first block, or everything.

        Raises:
            ConfigError: that would cut into the prompt, which blocks hold in different lengths.
        """
        removed = self.length - length
        if removed <= 0:
            return
        if length and removed > self._decoded:
            raise ConfigError(
                f"a block decoder can forget its {self._decoded} decoded tokens or everything,"
                f" not {removed} tokens"
            )
        for number, block in enumerate(self._blocks):
            block.truncate(block.length - removed if length else 0)
            self._next_position[number] -= removed if length else self._next_position[number]
        self._decoded = self._decoded - removed if length else 0

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
        if self.length == 0:
            return self._prefill(inputs_embeds)
        self._decoded += len(inputs_embeds)
        hidden = inputs_embeds
        for number in range(len(self._blocks)):
            start = self._next_position[number]
            positions = np.arange(start, start + len(hidden), dtype=np.int64)
            hidden, _ = self._run(number, hidden, positions)
        return hidden

    def check(self, rule: CutRule) -> None:
        """Refuse a rule that does not fit this decoder.

        Raises:
            ConfigError: the rule looks where this export has no block boundary, or the model's
                attention does not see the whole sequence.
        """
        size, layers = self._llm.block_layers, self._llm.layers
        window = self._llm.sliding_window
        if window and window < self._llm.max_kv:
            raise ConfigError(
                f"{rule.pruner.name} needs full attention in every layer; this model sees the last"
                f" {window} tokens only. Choose a method that cuts before the language model"
            )
        for layer in rule.schedule.layers:
            if layer % size or not 0 < layer < layers:
                raise ConfigError(
                    f"{rule.pruner.name} cuts before layer {layer}; this model has {layers} layers"
                    f" exported {size} to a block. Choose layers at block boundaries behind the"
                    " first, or export with --block-layers 1"
                )
        if rule.follows and not self._exposes_queries:
            raise ConfigError(
                f"{rule.pruner.name} reads the queries of decoder blocks, which this export does"
                " not put out; export the model again with --block-layers"
            )

    def _prefill(self, inputs_embeds: Float) -> Float:
        length = len(inputs_embeds)
        plan, self.kept = self.plan, {}
        if plan is None:
            plan = CutPlan(None, np.zeros(length, np.bool_), np.arange(length))
        rule, lap = plan.rule, plan.on_lap or (lambda _stage: None)
        self.num_visual = int(plan.is_visual.sum())
        rows = _Rows(inputs_embeds, plan.position_ids, plan.is_visual, np.arange(self.num_visual))
        if rule:
            self.check(rule)
        lap("prefill")
        for number, block in enumerate(self._blocks):
            layer = block.layers.start
            follows = rule is not None and layer < rule.follows
            if rule and (stage := rule.schedule.at(layer)):
                self._cut(rows, stage, rule, self._view(layer, rows))
                lap("prune")
            positions, flags = rows.position_ids, rows.is_visual
            rows.hidden, queries = self._run(number, rows.hidden, positions, follows)
            lap("prefill")
            if rule and follows:
                rule.passed(PassedBlock(block.layers, positions, flags, queries, block))
                lap("prune")
        return rows.hidden

    def _cut(self, rows: _Rows, stage: Stage, rule: CutRule, view: LayerView) -> None:
        """Drop the visual rows that the rule does not choose."""
        entering = np.flatnonzero(rows.is_visual)
        if stage.num_kept >= len(entering):
            self.kept[stage.layer] = rows.visual_place
            return
        kept = rule.choose(view, stage)
        self.kept[stage.layer] = rows.visual_place[kept.indices]
        stays = np.zeros(len(entering), np.bool_)
        stays[kept.indices] = True
        if kept.extra is not None and len(kept.extra):
            # They take the last dropped places: behind the image's rows, before the question.
            free = np.flatnonzero(~stays)[-len(kept.extra) :]
            rows.hidden = rows.hidden.copy()
            rows.hidden[entering[free]] = kept.extra
            stays[free] = True
        keep = ~rows.is_visual
        keep[entering[stays]] = True
        rows.hidden = rows.hidden[keep]
        rows.position_ids = rows.position_ids[keep]
        rows.is_visual = rows.is_visual[keep]
        rows.visual_place = rows.visual_place[stays]
        self.num_visual = len(rows.visual_place)
        if rule.position_policy == "compact":
            rows.position_ids = np.arange(len(rows.hidden), dtype=np.int64)

    def _run(
        self, number: int, hidden: Float, positions: NDArray[np.int64], queries: bool = False
    ) -> tuple[Float, dict[int, Float]]:
        result = self._blocks[number].run(hidden, positions, queries)
        self._next_position[number] = int(positions[-1]) + 1
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
