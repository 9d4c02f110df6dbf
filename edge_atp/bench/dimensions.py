"""Widths and depths of a model directory, for counting its FLOPs.

They come from a checkpoint's config.json or from the manifest. Manifests of early exports say
neither how wide the ViT's MLP is (CLIP's: four times the model) nor how large the text encoder is,
which then is not counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_atp.errors import ConfigError
from edge_atp.evaluation.arms import DENSE, Arm
from edge_atp.flops import ModelSpec, Plan, Transformer, from_config, make_plan
from edge_atp.runtime import in_llm
from edge_atp.runtime.cut_encoder import split_method
from edge_atp.runtime.depth import fit_options
from edge_atp.runtime.manifest import Manifest, TextTowerSpec, VisionSpec

_MLP_RATIO = 4
_CONFIG = "config.json"


def model_spec(manifest: Manifest, checkpoint: Path | None = None) -> tuple[ModelSpec, str]:
    """Dimensions of a model, and where they are from.

    Raises:
        ConfigError: the checkpoint's config does not say what is needed.
    """
    if checkpoint and (checkpoint / _CONFIG).is_file():
        tower = checkpoint / "text_tower" / _CONFIG
        text = _read(tower) if tower.is_file() else None
        spec = from_config(manifest.model_id, _read(checkpoint / _CONFIG), text)
        source = str(checkpoint / _CONFIG)
    else:
        spec, source = _from_manifest(manifest)
    vision = replace(spec.vision, layers=_vision_layers(manifest, spec.vision.layers))
    return replace(spec, vision=vision), source


def plan_of(model: ModelSpec, arm: Arm, text_tokens: int, manifest: Manifest | None = None) -> Plan:
    """What an arm does to the model; the text encoder is left out where its size is unknown.

    Args:
        manifest: of the exported model, for where methods cut that cut inside it.
    Raises:
        ConfigError: the method cannot cut a model of this depth.
    """
    if arm.method == DENSE:
        return make_plan(model, "none", None, text_tokens)
    cut, method = split_method(arm.method)
    options = fit_options(method, manifest) if manifest else {}
    kept = arm.num_kept if in_llm.takes_budget(method) else None
    plan = make_plan(model, method, kept, text_tokens, **options)
    if cut and manifest:
        plan = replace(plan, encoder_tokens=_cut_tokens(model, manifest.vision))
    return replace(plan, text_tower=plan.text_tower and model.text is not None)


def model_of(model: ModelSpec, arm: Arm, manifest: Manifest | None) -> ModelSpec:
    """The model as an arm runs it: an encoder that cuts ends with the layer the projector reads."""
    if manifest is None or not split_method(arm.method)[0]:
        return model
    return replace(model, vision=replace(model.vision, layers=manifest.vision.consumed_layers))


def _cut_tokens(model: ModelSpec, vision: VisionSpec) -> tuple[tuple[int, int], ...]:
    """(attention, MLP) tokens of each layer, the merged one counted as a patch."""
    cuts = dict(zip(vision.cut_layers, vision.cut_kept, strict=True))
    pairs, count = [], model.patches
    for layer in range(model.vision.layers):
        after = cuts[layer] + 1 if layer in cuts else count
        pairs.append((count, after))
        count = after
    return tuple(pairs)


def _from_manifest(manifest: Manifest) -> tuple[ModelSpec, str]:
    vision, llm, tower = manifest.vision, manifest.llm, manifest.text_tower
    width, heads = vision.feature_dim, max(1, vision.heads)
    mlp = vision.intermediate or _MLP_RATIO * width
    encoder = Transformer(vision.layers, width, mlp, heads, heads, width // heads)
    language = Transformer(
        llm.layers,
        llm.hidden,
        llm.intermediate,
        llm.heads,
        llm.kv_heads,
        llm.head_dim,
        gated=True,
    )
    patch = vision.image_size // max(vision.patch_grid.rows, 1)
    spec = ModelSpec(
        name=manifest.model_id,
        vision=encoder,
        patches=vision.num_patches,
        patch_values=3 * patch * patch,
        projector=(width, llm.hidden, llm.hidden),
        llm=language,
        vocab=llm.vocab,
        text=_text_encoder(tower) if tower else None,
        text_context=tower.context_length if tower else 77,
        joint_width=vision.embed_dim,
    )
    notes = ["manifest.json"]
    if not vision.intermediate:
        notes.append(f"MLP of the ViT assumed {_MLP_RATIO} times its width")
    if tower and spec.text is None:
        notes.append("text encoder not counted")
    return spec, "; ".join(notes)


def _text_encoder(tower: TextTowerSpec) -> Transformer | None:
    """Its shape; None where the manifest does not say."""
    if not (tower.layers and tower.hidden and tower.heads and tower.intermediate):
        return None
    head = tower.hidden // tower.heads
    return Transformer(
        tower.layers, tower.hidden, tower.intermediate, tower.heads, tower.heads, head
    )


def _vision_layers(manifest: Manifest, counted: int) -> int:
    """Layers that the vision graph runs: up to the one the projector consumes, or up to the one
    whose tokens are embedded in the joint space, whichever is deeper."""
    vision = manifest.vision
    if not vision.layers:
        return counted
    wanted = [vision.feature_layer, *([vision.embed_layer] if vision.embed_dim else [])]
    return max(layer if layer >= 0 else vision.layers + 1 + layer for layer in wanted)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected an object")
    return content
