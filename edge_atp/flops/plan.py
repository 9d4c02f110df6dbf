"""What a pruning method does to the number of visual tokens each part of a model sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge_atp.errors import ConfigError
from edge_atp.flops.count import layer_flops
from edge_atp.flops.models import ModelSpec
from edge_atp.pruning import load
from edge_atp.pruning.base import InModelPruner
from edge_atp.pruning.schedule import Schedule


@dataclass(frozen=True)
class Plan:
    """How many visual tokens each part of the model sees.

    Counts hold what a method adds to the kept tokens (EViT's and PruMerge's fused token, the ones
    that SparseVLM recycles).

    encoder_tokens: one (attention, MLP) pair a ViT layer, patches without CLS; empty for dense.
    projected: visual tokens that go through the projector.
    llm_tokens: visual tokens that enter each LLM layer.
    selection: FLOPs of scoring and selecting.
    text_tower: whether the question goes through the CLIP text tower.
    """

    encoder_tokens: tuple[tuple[int, int], ...]
    projected: int
    llm_tokens: tuple[int, ...]
    selection: float = 0.0
    text_tower: bool = False


def make_plan(
    model: ModelSpec, method: str, num_kept: int | None, text_tokens: int, **options: Any
) -> Plan:
    """The plan of a pruning method.

    Args:
        method: name in ``edge_atp.pruning``.
        num_kept: visual tokens kept of the whole image (per tile in the ViT); None takes the
            method's own ratios, which only methods inside the model have.
        text_tokens: length of the prompt's text, for the cost of scoring.
        options: of the method.
    Raises:
        ConfigError: unknown method, or num_kept out of range or missing.
    """
    total, layers = model.visual_tokens, model.llm.layers
    if num_kept is not None and not 1 <= num_kept <= total:
        raise ConfigError(f"num_kept is {num_kept}; {model.name} has 1 to {total} visual tokens")
    pruner = load(method, **options)
    if isinstance(pruner, InModelPruner):
        if hasattr(pruner, "encoder_schedule"):
            return _two_stage_plan(model, pruner, num_kept, text_tokens)
        if pruner.site == "in_llm":
            return _in_llm_plan(model, pruner, num_kept, text_tokens)
        return _in_encoder_plan(model, pruner, num_kept)
    if method == "none":
        return Plan((), total, (total,) * layers)
    if num_kept is None:
        raise ConfigError(f"{method} has no ratio of its own; give the number of tokens to keep")
    needed = {*pruner.needs, *map(_exposed, pruner.needs_one_of)}
    # A method that compares projected tokens projects all of them.
    projected = total if "image_embeds" in needed else num_kept
    selection = _selection_flops(model, needed, num_kept, text_tokens)
    left = num_kept + pruner.added(total - num_kept)
    projected = max(projected, left)
    return Plan((), projected, (left,) * layers, selection, "text_embed" in needed)


def _in_llm_plan(
    model: ModelSpec, pruner: InModelPruner, num_kept: int | None, text_tokens: int
) -> Plan:
    total, width = model.visual_tokens, model.llm.width
    cuts = pruner.schedule(total, num_kept)
    _require_depth(pruner, cuts, model.llm.layers - 1, "LLM")
    tokens = cuts.tokens_per_layer(model.llm.layers, total, pruner.added)
    scoring = 0.0
    for layer in cuts.layers:
        seen = tokens[layer - 1]
        rows = pruner.scored_rows(seen, text_tokens)
        scoring += 2.0 * rows * (seen + text_tokens) * width
    return Plan((), total, tuple(tokens), scoring)


def _in_encoder_plan(model: ModelSpec, pruner: InModelPruner, num_kept: int | None) -> Plan:
    tile, layers = model.patches, model.vision.layers
    cuts = pruner.schedule(tile, _per_tile(model, num_kept))
    _require_depth(pruner, cuts, layers - 1, "ViT")
    # These methods cut between attention and MLP.
    after = cuts.tokens_per_layer(layers, tile, pruner.added)
    before = [tile, *after[:-1]]
    left = after[-1] * model.tiles // model.merge
    scoring = sum(
        2.0 * pruner.scored_rows(before[layer], 0) * before[layer] * model.vision.width
        for layer in cuts.layers
    )
    pairs = tuple(zip(before, after, strict=True))
    return Plan(pairs, left, (left,) * model.llm.layers, scoring * model.tiles)


def _two_stage_plan(model: ModelSpec, pruner: Any, num_kept: int | None, text_tokens: int) -> Plan:
    """IVTP: rollout groups in the ViT, then in the LLM."""
    tile, layers = model.patches, model.vision.layers
    encoder_cuts = pruner.encoder_schedule(tile, _per_tile(model, num_kept))
    # A cut may follow the last layer that runs (24 of CLIP-L's 24, of which 23 run).
    _require_depth(pruner, encoder_cuts, layers + 1, "ViT")
    encoder = encoder_cuts.tokens_per_layer(layers, tile)
    left = encoder_cuts.counts[-1] * model.tiles // model.merge
    cuts = pruner.schedule(model.visual_tokens, num_kept)
    _require_depth(pruner, cuts, model.llm.layers, "LLM")
    llm = cuts.tokens_per_layer(model.llm.layers, left)
    # A rollout needs the whole attention matrix of every grouped layer, and in the LLM a side row.
    scoring = sum(2.0 * (n + 1) ** 2 * model.vision.width for n in encoder) * model.tiles
    for visual in llm[: cuts.layers[-1]]:
        length = visual + text_tokens + 1
        scoring += 2.0 * length**2 * model.llm.width + layer_flops(model.llm, 1, 1, causal=False)
    pairs = tuple((n, n) for n in encoder)
    return Plan(pairs, left, tuple(llm), scoring, text_tower=True)


def _exposed(group: tuple[str, ...]) -> str:
    """The first of the signals that a host has before its projector, where it cuts if it may."""
    return next((name for name in group if name != "image_embeds"), group[0])


def _per_tile(model: ModelSpec, num_kept: int | None) -> int | None:
    return None if num_kept is None else max(1, num_kept * model.merge // model.tiles)


def _require_depth(pruner: InModelPruner, cuts: Schedule, deepest: int, part: str) -> None:
    if max(cuts.layers) > deepest:
        raise ConfigError(
            f"{pruner.name} cuts at layer {max(cuts.layers)} of the {part}, whose last cut can be"
            f" at {deepest}: set the method's layers"
        )


def _selection_flops(model: ModelSpec, needed: set[str], num_kept: int, text_tokens: int) -> float:
    """Interface-level: cosines with the text, and one N x N matrix where tokens are compared."""
    total, flops = model.visual_tokens, 0.0
    if "patch_embeds" in needed:
        flops += 4.0 * total * model.joint_width
    if "text_tokens" in needed:
        flops += 2.0 * total * text_tokens * model.llm.width
    if "image_embeds" in needed:
        flops += 2.0 * total * total * model.llm.width + 2.0 * num_kept * total
    elif "patch_keys" in needed:
        flops += 2.0 * num_kept * total * model.vision.width
    elif "patch_features" in needed and "patch_grid" not in needed:
        flops += 2.0 * total * total * model.vision.width
    return flops
