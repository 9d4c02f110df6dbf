"""Where methods cut in a model that is not as deep as the one they were published for.

A method's own layers hold wherever they exist in the model, as they do in ``edge_atp.hf``. In a
shallower model they move to the same share of its depth, and to places where this export can cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge_atp.errors import ConfigError
from edge_atp.pruning import load, option_names
from edge_atp.runtime.in_model import in_model_methods
from edge_atp.runtime.manifest import Manifest

# Depth of the models the methods were published for: LLaVA-1.5-7B with CLIP ViT-L.
_LLM_DEPTH, _ENCODER_DEPTH = 32, 24
# Layers of such a language model that IVTP's second stage spans.
_IVTP_LLM_LAYERS = 12


def fit_options(name: str, manifest: Manifest) -> dict[str, Any]:
    """Options that make the method ``name`` fit this model; none where it fits as it is.

    Raises:
        ConfigError: the model has no place to cut.
    """
    if name not in in_model_methods():
        return {}
    method: Any = load(name)
    if method.site == "in_encoder" or name == "ivtp":
        count, size = manifest.vision.consumed_layers, max(1, manifest.vision.group_layers)
        if name == "ivtp":
            return _fit_ivtp(method, count, manifest.llm.layers)
        if name == "tome":
            return {"num_layers": min(method.num_layers, count)}
        tops = [min(first + size, count) - 1 for first in range(0, count, size)]
        layers = method.layers
        if not set(layers) <= set(range(count)):
            layers = [_share(layer + 1, count, _ENCODER_DEPTH) - 1 for layer in layers]
        return {"layers": tuple(_snap(layers, tops))}
    depth, size = manifest.llm.layers, max(1, manifest.llm.block_layers)
    places = list(range(size, depth, size))
    if not places:
        raise ConfigError(
            f"{name} cuts between blocks of the language model, and {depth} layers exported"
            f" {size} to a block leave no place; export with --block-layers 1"
        )
    return _fit_decoder(name, method, depth, places)


def _fit_decoder(name: str, method: Any, depth: int, places: list[int]) -> dict[str, Any]:
    options = option_names(name)
    single = "layer" in options
    layers = (method.layer,) if single else method.layers
    if max(layers) >= depth:
        layers = [_share(layer, depth, _LLM_DEPTH) for layer in layers]
    snapped = _snap(layers, places)
    if single:
        return {"layer": snapped[0]}
    # Fewer places than stages: the last stages count, they say how much is left in the end.
    return {"layers": tuple(snapped), "ratios": tuple(method.ratios[-len(snapped) :])}


def _fit_ivtp(method: Any, encoder_layers: int, llm_layers: int) -> dict[str, Any]:
    """Groups of three layers, fewer where the language model's share of them is shorter."""
    if method.encoder_layers - method.group_size < encoder_layers and (
        method.llm_layers < llm_layers
    ):
        return {}
    stage = max(1, _share(_IVTP_LLM_LAYERS, llm_layers, _LLM_DEPTH))
    group = min(method.group_size, stage)
    return {
        "group_size": group,
        "llm_layers": stage - stage % group,
        "encoder_layers": -(-encoder_layers // group) * group,
    }


def _share(layer: int, depth: int, published: int) -> int:
    """The same share of another depth, halves up."""
    return (2 * layer * depth + published) // (2 * published)


def _snap(layers: Sequence[int], places: list[int]) -> list[int]:
    """For each layer the nearest of ``places`` (the lower on a tie), strictly ascending.

    Where they run out at the end, earlier ones move down; where there are too few, the first
    layers get none.
    """
    found: list[int] = []
    for layer in list(layers)[-len(places) :]:
        free = [place for place in places if not found or place > found[-1]]
        if not free:
            break
        found.append(min(free, key=lambda place: (abs(place - layer), place)))
    missing = min(len(layers), len(places)) - len(found)
    rest = [place for place in places if place not in found]
    return sorted(found + rest[-missing:]) if missing else found
