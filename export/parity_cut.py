"""Gates of the encoder that drops patches on the way, against the original model's own modules.

The reference cuts by the methods' functions in ``edge_atp.pruning`` (``evit.split``,
``tome.log_sizes``) between the modules of the transformers model, so that the rule written into
the graph is checked and not only its arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from edge_atp.pruning import evit, tome
from edge_atp.pruning.schedule import Schedule, Stage
from edge_atp.runtime.cut_encoder import has_cut
from edge_atp.runtime.engine import Engine
from export.gates import BOUNDARY_GAP, Measurements, jaccard_distance, relative_l2
from export.reference import Reference

Float = NDArray[np.float32]


def encode_with_cuts(
    reference: Reference, pixel_values: Float, schedule: Schedule
) -> tuple[Float, Float, NDArray[np.int64], float]:
    """The original's encoder with the cuts of ``schedule``, layer by layer.

    Returns:
        (K, D) patch features, (K,) CLS attention of the consumed layer, (K,) int64 their places,
        and the smallest distance between a kept and a dropped score.
    """
    with torch.inference_mode():
        tower = reference.vision_tower
        embedded = tower.embeddings(torch.from_numpy(pixel_values))
        x = tower.pre_layrnorm(embedded)[0]
        place: NDArray[np.int64] = np.arange(len(x) - 1)
        sizes, gap = torch.ones(len(x)), np.inf
        row = torch.zeros(0)
        for index in range(reference.consumed_layers):
            layer = tower.encoder.layers[index]
            mixed, row = _attend(layer, x, tome.log_sizes(sizes))
            x = x + mixed
            # The token of what left before stands last and is no patch.
            row = row[: len(place)]
            if (stage := schedule.at(index)) is not None:
                x, place, sizes, distance = _cut(x, row, place, sizes, stage.num_kept)
                gap = min(gap, distance)
            x = x + layer.mlp(layer.layer_norm2(x))
        features: Float = x[1 : 1 + len(place)].numpy()
        attention: Float = row.numpy()
    return features, attention, place, gap


def _attend(
    layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """(S, D) output of the attention of one layer, and head-mean CLS attention (S - 1,)."""
    attention = layer.self_attn
    heads, width = attention.num_heads, x.shape[1]
    normed = layer.layer_norm1(x)
    q, k, v = (
        projection(normed).view(len(x), heads, -1).transpose(0, 1)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    logits = q @ k.transpose(1, 2) * (width // heads) ** -0.5 + bias
    weights = logits.softmax(dim=-1)
    mixed = (weights @ v).transpose(0, 1).reshape(len(x), width)
    return attention.out_proj(mixed), weights[:, 0, 1:].mean(dim=0)


def _cut(
    x: torch.Tensor, row: torch.Tensor, place: NDArray[np.int64], sizes: torch.Tensor, num_kept: int
) -> tuple[torch.Tensor, NDArray[np.int64], torch.Tensor, float]:
    """Keep the patches of the largest ``row``; the rest, earlier rest included, is one token."""
    parts = evit.split(row, num_kept)
    ranked = torch.sort(row, descending=True).values
    rest = torch.cat([1 + parts.dropped, torch.arange(1 + len(place), len(x))])
    kept = 1 + parts.kept
    merged = (x[rest] * sizes[rest, None]).sum(dim=0) / sizes[rest].sum()
    states = torch.cat([x[:1], x[kept], merged[None]])
    counts = torch.cat([sizes[:1], sizes[kept], sizes[rest].sum()[None]])
    gap = float(ranked[num_kept - 1] - ranked[num_kept])
    return states, place[parts.kept.numpy()], counts, gap


def compare_cut(
    reference: Reference, engine: Engine, images: Sequence[Float], measured: Measurements
) -> None:
    """Run every image through both; nothing for a directory without an encoder that cuts.

    Args:
        images: (1, 3, size, size) each.
    """
    if not has_cut(engine.directory.manifest):
        return
    encoder = engine.cut_encoder
    schedule = Schedule(tuple(Stage(layer, kept) for layer, kept in encoder.cuts))
    distances, disjoint = [], 0
    for pixels in images:
        ours = encoder.encode(pixels)
        features, attention, place, gap = encode_with_cuts(reference, pixels, schedule)
        assert ours.place is not None  # what this encoder is for
        if gap >= BOUNDARY_GAP:
            distances.append(jaccard_distance(ours.place, place))
        _, mine, theirs = np.intersect1d(ours.place, place, return_indices=True)
        if not len(mine):
            # Nothing to compare row by row; no fault where rounding may have chosen.
            disjoint += gap >= BOUNDARY_GAP
            continue
        error = relative_l2(ours.patch_features[mine], features[theirs])
        measured.add("cut_features_relative_l2", error)
        error = float(np.abs(ours.cls_attention[mine] - attention[theirs]).max())
        measured.add("cut_cls_attention_max_abs", error)
    if distances:
        measured.add("cut_jaccard_distance", float(np.mean(distances)))
    if disjoint:
        measured.add("cut_images_without_common_patch", disjoint)
