"""What a pruning method is given about one encoded image: each signal only where it asks for it.

Also says, from the manifest alone, which methods a model directory feeds and what others miss.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edge_atp import pruning
from edge_atp.errors import ConfigError, MissingSignalError
from edge_atp.pruning import Pruner
from edge_atp.pruning.base import InModelPruner
from edge_atp.runtime.cut_encoder import require_cut, split_method
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.in_model import require_graphs
from edge_atp.runtime.manifest import Manifest, VisionSpec
from edge_atp.runtime.outputs import VisionOutput
from edge_atp.types import PatchGrid, VisualSignals


def optional_outputs(pruner: Pruner, vision: VisionSpec) -> tuple[str, ...]:
    """Vision outputs to fetch for ``pruner`` besides those that are always there.

    Methods compare the keys of the layer whose features the projector consumes, or name another
    by ``attention_layer`` (0-based, negative from the end), whose CLS attention they then read too.
    """
    if "patch_keys" not in pruner.needs:
        return ()
    return ("last_patch_keys", "last_cls_attention") if _last(pruner, vision) else ("patch_keys",)


def read_signals(
    engine: Engine, vision: VisionOutput, question: str, grid: PatchGrid, pruner: Pruner
) -> VisualSignals:
    """Signals of one image for one question.

    Args:
        engine: computes what the vision encoder did not put out; a model call each.
        vision: with the ``optional_outputs`` of the pruner.
        pruner: says what it reads.
    Raises:
        MissingSignalError: the model directory cannot feed the method; says how to export one
            that can.
    """
    manifest = engine.directory.manifest
    if missing := why_not(pruner, manifest):
        raise MissingSignalError(missing)
    needs = pruner.needs
    signals = VisualSignals(
        patch_features=vision.patch_features,
        cls_attention=vision.cls_attention,
        patch_embeds=vision.patch_embeds,
        # A grid with gaps is none.
        patch_grid=grid if vision.place is None else None,
    )
    if "patch_keys" in needs:
        signals = _with_keys(signals, vision, pruner, manifest.vision)
    if "text_embed" in needs:
        signals = replace(signals, text_embed=engine.encode_text(question))
    if "image_embeds" in needs:
        every = np.arange(len(vision.patch_features), dtype=np.int64)
        signals = replace(signals, image_embeds=engine.project(vision.patch_features, every))
    if "text_tokens" in needs:
        signals = replace(signals, text_tokens=engine.embed_question(question))
    return signals


def runnable_methods(manifest: Manifest) -> tuple[str, ...]:
    """Pruning methods that a model directory's graphs feed, sorted."""
    return tuple(name for name in pruning.available() if not why_not_method(name, manifest))


def why_not_method(name: str, manifest: Manifest) -> str:
    """Why the model directory cannot run the method of that name with its usual options, or "".

    Args:
        name: of a method, or "cut+NAME" for one behind the encoder's own cut.
    """
    cut, behind = split_method(name)
    try:
        if cut:
            require_cut(name, manifest)
        pruner = pruning.load(behind)
    except ConfigError as error:
        if not cut or behind not in pruning.available():
            raise
        return str(error)
    except ImportError as error:  # the method's own package is missing: nobody else's concern
        return f"{name} needs a package that is not installed: {error}"
    return why_not(pruner, manifest)


def why_not(pruner: Pruner, manifest: Manifest) -> str:
    """What the model directory lacks to run ``pruner``, and how to get it; "" where it runs."""
    if isinstance(pruner, InModelPruner):
        try:
            require_graphs(pruner, manifest)
        except ConfigError as error:
            return str(error)
        return ""
    exposed = {"patch_grid", "image_embeds", "text_tokens"}
    exposed.update(output.name for output in manifest.graph("vision").outputs)
    if manifest.text_tower:
        exposed.add("text_embed")
    if missing := [o for o in optional_outputs(pruner, manifest.vision) if o not in exposed]:
        return f"{pruner.name} needs {_described(missing[0])}"
    exposed.add("patch_keys")
    for group in (*((name,) for name in pruner.needs), *pruner.needs_one_of):
        if not exposed.intersection(group):
            return pruner.missing(*group)
    return ""


def _described(output: str) -> str:
    if output == "patch_keys":
        return (
            "patch_keys, which the vision graph of this model directory does not put out: it was"
            " exported by an earlier version; export the model again to enable it"
        )
    return (
        f"{output.removeprefix('last_')} of the encoder's last layer, which the vision graph of"
        f" this model directory does not put out (output `{output}`): to enable it, export the"
        " model again with --text-tower, so that the last layer runs"
    )


def _last(pruner: Pruner, vision: VisionSpec) -> bool:
    """Whether the method reads the encoder's last layer, and that is not the consumed one."""
    layer = getattr(pruner, "attention_layer", None)
    consumed = vision.feature_layer in (-1, vision.layers)
    return layer is not None and layer in (-1, vision.layers - 1) and not consumed


def _with_keys(
    signals: VisualSignals, vision: VisionOutput, pruner: Pruner, spec: VisionSpec
) -> VisualSignals:
    last = _last(pruner, spec)
    keys = vision.last_patch_keys if last else vision.patch_keys
    if keys is not None and getattr(pruner, "mean_keys", False):
        keys = keys.reshape(len(keys), spec.heads, -1).mean(axis=1)
    attention = vision.last_cls_attention if last else vision.cls_attention
    return replace(signals, patch_keys=keys, cls_attention=attention)
