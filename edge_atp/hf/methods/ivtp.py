"""IVTP: rollout-based pruning in the vision encoder, then in the language model.

In the language model the scoring row is a textual pseudo-CLS. It runs through the decoder layers
beside the real rows, attends to everything up to the last visual token, and nothing attends to it.
Its position is that of the token behind the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edge_atp.errors import ConfigError, InferenceError, MissingSignalError
from edge_atp.hf.assemble import Parts, Request, with_rule
from edge_atp.hf.budget import Keep
from edge_atp.hf.family import Host, Tensor, VisionCall
from edge_atp.hf.hooks.attention_view import AttentionView
from edge_atp.hf.hooks.decoder import DecoderRule, Kept
from edge_atp.hf.hooks.encoder import EncoderPruner, EncoderRule, Tile
from edge_atp.hf.hooks.projections import Heads
from edge_atp.hf.hooks.projector import Chosen, ProjectorCut
from edge_atp.hf.hooks.questions import Questions
from edge_atp.hf.hooks.vision_tap import VisionTap
from edge_atp.hf.text.tower import TextTower
from edge_atp.pruning.attention import attention_rows
from edge_atp.pruning.ivtp import map_relevance, pseudo_cls, rank, text_relevance
from edge_atp.pruning.schedule import Schedule, Stage


class EncoderStage(EncoderRule):
    """Stage 1: groups of layers, cut behind the top layer of each."""

    inside_layer = False

    def __init__(self, method: Any, keep: Keep | None, num_layers: int) -> None:
        """
        Args:
            num_layers: layers that feed the projector.
        """
        self._method = method
        self._keep = keep
        self._num_layers = num_layers
        if method.encoder_layers - method.group_size >= num_layers:
            raise ConfigError(
                f"encoder_layers is {method.encoder_layers}, but the projector reads layer"
                f" {num_layers - 1}; groups of {method.group_size} end at"
                f" {num_layers - num_layers % -method.group_size} at most"
            )

    def watched(self, num_layers: int) -> tuple[int, ...]:
        """Every layer of every group."""
        return tuple(range(min(num_layers, self._method.encoder_layers)))

    def schedule(self, num_patches: int) -> Schedule:
        """Constant-ratio cuts; the last one is behind the last layer that runs."""
        count = None if self._keep is None else self._keep.num_kept(num_patches)
        planned = self._method.encoder_schedule(num_patches, count)
        return Schedule(
            tuple(Stage(min(s.layer, self._num_layers), s.num_kept) for s in planned.stages)
        )

    def cut(
        self, layer: int, schedule: Schedule, tile: Tile, states: Tensor, heads: Heads
    ) -> Tensor:
        """Add the layer to the group's rollout; at its top, keep the best patches."""
        group = tile.memory.setdefault("attentions", [])
        group.append(attention_rows(heads.queries, heads.keys).mean(0))
        stage = schedule.at(layer + 1)
        if stage is None:
            return states
        patches = torch.arange(1, len(states), device=states.device)
        kept = rank(group, heads.values, 0, patches, stage.num_kept).kept_indices
        group.clear()
        tile.place = tile.place[kept]
        return torch.cat((states[:1], states[1:][kept]))


class VisionStage(EncoderPruner):
    """Stage 1's hooks; notes each image's CLS for stage 2."""

    def __init__(self, request: Request, rule: EncoderStage, tap: VisionTap) -> None:
        super().__init__(request.family, request.host, rule, request.questions.notice)
        self._text_tower = request.tower
        self._tap = tap
        # CLS in the joint space (I, P) and behind the projector (I, H), mean over an image's tiles.
        self.joint: Tensor | None = None
        self.projected: Tensor | None = None
        # Tiles of each image.
        self.tiles: list[int] = []

    def choose(self, call: VisionCall, features: Tensor, embeds: Tensor | None) -> Chosen:
        """Everything that stage 1 left."""
        cls = self._tap.cls_feature()
        last = self._tap.last_cls()
        tower: Any = self._text_tower
        with torch.no_grad():
            joint = tower.project_patches(last[:, None], self._host.vision)[:, 0]
            # Straight through forward: the projector's hooks are for the call's tokens.
            projected = self._host.projector.forward(cls)
        layouts = self._family.layout(self._host, call, len(last), self.num_patches, per_tile=True)
        self.tiles = [len(layout.groups) for layout in layouts]
        self.joint = torch.stack([tiles.mean(0) for tiles in joint.split(self.tiles)])
        self.projected = torch.stack([tiles.mean(0) for tiles in projected.split(self.tiles)])
        return super().choose(call, features, embeds)

    def clear(self) -> None:
        """Forget the call's tensors, but not the images' CLS."""
        super().clear()
        self._tap.clear()


class LanguageStage(DecoderRule):
    """Stage 2: groups of decoder layers, ranked from the pseudo-CLS row."""

    def __init__(
        self,
        method: Any,
        keep: Keep | None,
        host: Host,
        vision: VisionStage,
        questions: Questions,
        tower: TextTower,
    ) -> None:
        self._method = method
        self._keep = keep
        self._host = host
        self._vision = vision
        self._questions = questions
        self._tower = tower
        self._side: dict[int, Tensor] = {}
        self._group: dict[int, list[Tensor]] = {}
        self._batch = 0

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Behind the top layer of each group."""
        size = self._method.group_size
        return tuple(range(size, self._method.llm_layers + 1, size))

    def taps(self, num_layers: int) -> tuple[int, ...]:
        """Every layer of every group."""
        return tuple(range(self._method.llm_layers))

    def start(self, view: AttentionView, embeds: Tensor) -> None:
        """Form the pseudo-CLS of every prompt that has an image."""
        self._side, self._group, self._batch = {}, {}, len(embeds)
        for row in range(len(embeds)):
            if len(view.visual_rows(row)):
                sample = row * self._questions.count // self._batch
                self._side[row] = self._pseudo_cls(sample).to(embeds)
                self._group[row] = []

    def passed(self, layer: int, view: AttentionView) -> None:
        """Run the side row through a layer and add the layer to the group's rollout."""
        for row, state in self._side.items():
            rows = view.rows_to_last_visual(row)
            real = view.rows(layer, row, rows, rows).mean(0)
            self._side[row], side = view.side_row(layer, row, state, rows)
            full = torch.nn.functional.pad(real, (0, 1))
            self._group[row].append(torch.cat((full, side.mean(0)[None])))

    def choose(self, layer: int, view: AttentionView, sample: int, num_visual: int) -> Kept:
        """Rank the group's visual tokens."""
        rows = view.rows_to_last_visual(sample)
        visual = torch.searchsorted(rows, view.visual_rows(sample))
        values = view.values(layer - 1, sample, rows)
        group = self._group[sample]
        count = self._count(layer, sample, len(visual))
        kept = rank(group, values, len(rows), visual, count).kept_indices
        group.clear()
        return Kept(kept)

    def _count(self, layer: int, row: int, left: int) -> int:
        """Tokens kept at a layer: the schedule of one tile, times the prompt's tiles."""
        patches = self._vision.num_patches
        count = None if self._keep is None else self._keep.num_kept(patches)
        stage = self._method.schedule(patches, count).at(layer)
        images = self._images(row * self._questions.count // self._batch)
        tiles = sum(self._vision.tiles[image] for image in images)
        return min(left, int(stage.num_kept) * tiles)

    def _images(self, sample: int) -> Sequence[int]:
        return [i for i, owner in enumerate(self._questions.samples) if owner == sample]

    def _pseudo_cls(self, sample: int) -> Tensor:
        """(H,) side row of one prompt; several images count with their mean CLS."""
        joint, projected = self._vision.joint, self._vision.projected
        if joint is None or projected is None:
            raise InferenceError("ivtp has seen no image of this prompt; attach before encoding")
        images = self._images(sample)
        text = self._questions.text(sample)
        clip = self._tower.encode(text)
        tokens, spans = self._questions.tokens(text)
        relevance = text_relevance(clip.tokens.to(joint.device), joint[images].mean(0))
        mapped = map_relevance(relevance, clip.spans, spans).to(tokens.device)
        visual_cls = projected[images].mean(0).to(tokens.device)
        return pseudo_cls(tokens, mapped, visual_cls, self._method.threshold)


def assemble(request: Request) -> Parts:
    """Both stages."""
    method, host, tower = request.method, request.host, request.tower
    if tower is None:
        raise MissingSignalError(
            "ivtp compares the question with the image in CLIP's joint space: attach with"
            " text_tower=..., the text encoder that was trained with this vision encoder"
        )
    tap = VisionTap(host.vision)
    stage = EncoderStage(method, request.budget, host.vision.feature_layer + 1)
    vision = VisionStage(request, stage, tap)
    rule = LanguageStage(method, request.budget, host, vision, request.questions, tower)
    parts = with_rule(request, rule)
    return Parts(
        policy=parts.policy,
        entrance=parts.entrance,
        projector=ProjectorCut(request.family, host, vision),
        decoder=parts.decoder,
        encoder=(vision, tap),
    )
