"""Gates of a directory in pieces: the vision encoder in groups against the one in one graph.

A decoder in blocks needs no gates of its own: where there are blocks, the gates on logits and
answers ran through them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_atp.pruning.schedule import Schedule
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.in_vit.base import EncoderRule, GroupView, PatchTokens
from export.gates import Measurements, relative_l2

Float = NDArray[np.float32]


class _Watch(EncoderRule):
    """Cuts nothing and keeps the CLS attention of the last group's top layer."""

    cls_attention: Float

    def _plan(self, num_patches: int, num_kept: int | None) -> Schedule:
        return Schedule(())

    def cut(self, view: GroupView, tokens: PatchTokens) -> PatchTokens:
        self.cls_attention = view.attention[-1][0, 1:]
        return tokens


def compare_groups(
    engine: Engine,
    images: Sequence[Float],
    reference_cls: Callable[[Float], Float] | None,
    measured: Measurements,
) -> None:
    """Run every image uncut through the groups and compare; nothing for an encoder in one graph.

    Args:
        images: (1, 3, size, size) each.
        reference_cls: pixel_values -> (P,) joint-space CLS of the original model; None where the
            directory has no joint space.
    """
    vision = engine.directory.manifest.vision
    if not vision.group_layers:
        return
    encoder = engine.grouped_encoder
    for pixels in images:
        whole, watch = engine.encode_image(pixels), _Watch(None, vision, None)
        pieces = encoder.encode(pixels, watch)
        error = relative_l2(pieces.patch_features, whole.patch_features)
        measured.add("groups_relative_l2", error)
        error = float(np.abs(watch.cls_attention - whole.cls_attention).max())
        measured.add("groups_cls_attention_max_abs", error)
        if reference_cls:
            error = relative_l2(encoder.cls_embed(pieces), reference_cls(pixels))
            measured.add("cls_embed_relative_l2", error)
