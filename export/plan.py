"""Which graphs a model directory gets, and what emits each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from export.architecture import Llava
from export.decoder import emit_block, emit_decoder, emit_probe
from export.graph import GraphBuilder
from export.projector import emit_projector
from export.selection import emit_selection
from export.settings import ExportSettings
from export.text_tower import TextTower, emit_text_tower
from export.vision import emit_vision
from export.vision_cut import emit_vision_cut, read_schedule
from export.vision_groups import emit_cls, emit_group, emit_tail, group_bounds


@dataclass(frozen=True)
class Sources:
    """Everything that is read before the first file is written."""

    settings: ExportSettings
    model: Llava
    tower: TextTower | None
    tokenizer: Path
    max_kv: int


@dataclass(frozen=True)
class PlannedGraph:
    """One graph to write.

    kind: what precisions name it by; several roles (decoder blocks) share a kind.
    weight_bytes: stored size of its weights, to decide whether they go to a file of their own.
    """

    role: str
    kind: str
    emit: Callable[[GraphBuilder], None]
    weight_bytes: int


def plan_graphs(sources: Sources) -> list[PlannedGraph]:
    """Every graph of the directory, in the order they run."""
    model, tower, settings = sources.model, sources.tower, sources.settings
    tensors, dialect = model.tensors, settings.dialect
    vision = partial(
        emit_vision,
        tensors=tensors,
        config=model.vision,
        visual_projection=tower.visual_projection if tower else None,
        dialect=dialect,
        embed_layer=settings.embed_layer,
        value_path=settings.relevance_source == "value",
    )
    project = partial(emit_projector, model=model, dialect=dialect)
    plan = [PlannedGraph("vision", "vision", vision, tensors.num_bytes("vision."))]
    if tower:
        plan += _text_graphs(tower, model.vision.grid**2, settings)
    if settings.vision_cut:
        plan.append(_cut_graph(sources))
    if settings.vision_groups:
        plan += _group_graphs(sources)
    plan.append(PlannedGraph("project", "project", project, tensors.num_bytes("projector.")))
    return plan + (_block_graphs(sources) if settings.block_layers else [_decoder_graph(sources)])


def _text_graphs(
    tower: TextTower, num_patches: int, settings: ExportSettings
) -> list[PlannedGraph]:
    text = partial(
        emit_text_tower,
        tower=tower,
        dialect=settings.dialect,
        # What one token of the question has to do with the image: read by IVTP.
        with_tokens=settings.vision_groups > 0,
    )
    graphs = [PlannedGraph("text", "text", text, tower.tensors.num_bytes("text."))]
    if settings.relevance_source != "value":
        select = partial(
            emit_selection,
            num_patches=num_patches,
            embed_dim=tower.embed_dim,
            relevance_source=settings.relevance_source,
        )
        graphs.append(PlannedGraph("select_atp", "select_atp", select, 0))
    return graphs


def _decoder_graph(sources: Sources) -> PlannedGraph:
    model = sources.model
    emit = partial(
        emit_decoder,
        tensors=model.tensors,
        config=model.llm,
        dialect=sources.settings.dialect,
        max_kv=sources.max_kv,
    )
    return PlannedGraph("decoder", "decoder", emit, model.tensors.num_bytes("llm."))


def _cut_graph(sources: Sources) -> PlannedGraph:
    model, tower, settings = sources.model, sources.tower, sources.settings
    emit = partial(
        emit_vision_cut,
        tensors=model.tensors,
        config=model.vision,
        visual_projection=tower.visual_projection if tower else None,
        dialect=settings.dialect,
        schedule=read_schedule(settings.vision_cut, model.vision),
        value_path=settings.relevance_source == "value",
    )
    return PlannedGraph("vision_cut", "vision", emit, model.tensors.num_bytes("vision."))


def _group_graphs(sources: Sources) -> list[PlannedGraph]:
    """``vision_group.<i>`` of vision_groups layers each, ``vision_tail`` and ``vision_cls``."""
    model, tower, settings = sources.model, sources.tower, sources.settings
    tensors, config, dialect = model.tensors, model.vision, settings.dialect
    bounds = group_bounds(config, settings.vision_groups)
    last = bounds[-1][1] - 1
    per_layer = tensors.num_bytes("vision.encoder.layers.0.")
    graphs = []
    for number, (first, end) in enumerate(bounds):
        group = partial(
            emit_group, tensors=tensors, config=config, dialect=dialect, first=first, end=end
        )
        size = per_layer * (end - first)
        graphs.append(PlannedGraph(f"vision_group.{number}", "vision", group, size))
    tail = partial(emit_tail, tensors=tensors, config=config, dialect=dialect, last=last)
    graphs.append(PlannedGraph("vision_tail", "vision", tail, per_layer))
    if tower:
        cls = partial(
            emit_cls,
            tensors=tensors,
            config=config,
            dialect=dialect,
            first=last + 1,
            visual_projection=tower.visual_projection,
        )
        rest = per_layer * (config.layers - last - 1)
        graphs.append(PlannedGraph("vision_cls", "vision", cls, rest))
    return graphs


def _block_graphs(sources: Sources) -> list[PlannedGraph]:
    """``decoder.<i>`` of block_layers layers each, and ``probe.<layer>`` for its first layer."""
    model, size = sources.model, sources.settings.block_layers
    llm, tensors = model.llm, model.tensors
    per_layer = tensors.num_bytes("llm.layers.0.")
    graphs = []
    for number, first in enumerate(range(0, llm.layers, size)):
        emit = partial(
            emit_block,
            tensors=tensors,
            config=llm,
            dialect=sources.settings.dialect,
            max_kv=sources.max_kv,
            first=first,
            end=min(first + size, llm.layers),
        )
        graphs.append(PlannedGraph(f"decoder.{number}", "decoder", emit, per_layer * size))
        probe = partial(emit_probe, tensors=tensors, config=llm, layer=first, max_kv=sources.max_kv)
        graphs.append(PlannedGraph(f"probe.{first}", "probe", probe, 0))
    return graphs
