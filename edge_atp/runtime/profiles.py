"""The input shapes an engine is built for: smallest, typical and largest of each profile.

Both TensorRT backends build from these: the native one ahead of time, ONNX Runtime's provider when
a graph is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from edge_atp.errors import ArtifactError
from edge_atp.runtime.manifest import GraphSpec, Manifest

Shape = tuple[int, ...]

# Dialects of standard operators alone.
READABLE_DIALECTS = ("prim17", "prim18", "std24")

# A question with its prompt around it.
_TYPICAL_TEXT = 32
# Kinds of graphs the runtime executes; selection stays on the host, where it takes 0.05 ms. A
# decoder in blocks and an encoder in groups hold several of a kind, each an engine of its own.
ROLES = (
    "vision",
    "vision_cut",
    "vision_group",
    "vision_tail",
    "vision_cls",
    "text",
    "project",
    "decoder",
    "probe",
)


@dataclass(frozen=True)
class Bounds:
    """Smallest, typical and largest shape of one input."""

    min: Shape
    opt: Shape
    max: Shape


Profile = dict[str, Bounds]


def is_executed(role: str) -> bool:
    """Whether the runtime runs the graph of that role, such as "text" or "decoder.3"."""
    return _kind(role) in ROLES


def profiles_for(graph: GraphSpec, manifest: Manifest) -> list[Profile]:
    """Profiles of one graph; the decoder has prefill and decode, all others one.

    Raises:
        ArtifactError: the graph's dialect cannot become an engine.
    """
    kind = _kind(graph.role)
    if kind == "decoder":
        if graph.dialect not in READABLE_DIALECTS:
            raise ArtifactError(
                f"the decoder is written in dialect {graph.dialect!r}, which TensorRT does not"
                " read; export with --dialect prim18 (prim17 for TensorRT 8.6, std24 from 10.15)"
            )
        return _decoder_profiles(graph, manifest)
    if kind == "probe":
        longest = manifest.llm.max_kv
        prompt = min(longest, manifest.vision.num_patches + _TYPICAL_TEXT)
        every = (1, prompt, longest)
        return [_profile(graph, {"tokens": every, "rows": (1, 1, longest)})]
    ranges = {
        "tokens": _text_range(manifest),
        # CLS, and what the cuts before have left of the patches.
        "rows": (2, 1 + _typical_kept(manifest), 1 + manifest.vision.num_patches),
        # Methods that merge patches hand in fewer than the encoder made.
        "num_features": (1, manifest.vision.num_patches, manifest.vision.num_patches),
        "num_kept": (1, _typical_kept(manifest), manifest.selection.keep_max),
    }
    return [_profile(graph, ranges)]


def _decoder_profiles(graph: GraphSpec, manifest: Manifest) -> list[Profile]:
    longest = manifest.llm.max_kv
    prompt = min(longest, _typical_kept(manifest) + _TYPICAL_TEXT)
    prefill = {
        "tokens": (1, prompt, longest),
        "past": (0, 0, longest - 1),
        "total": (1, prompt, longest),
    }
    decode = {
        # std24 has no other dynamic dimension: its cache is static.
        "tokens": (1, 1, 1),
        "past": (1, min(prompt, longest - 1), longest - 1),
        "total": (2, min(prompt + 1, longest), longest),
    }
    # Decode first: the runtime takes the first profile that covers the shapes.
    return [_profile(graph, decode), _profile(graph, prefill)]


def _profile(graph: GraphSpec, ranges: dict[str, tuple[int, int, int]]) -> Profile:
    result = {}
    for tensor in graph.inputs:
        unknown = [d for d in tensor.shape if isinstance(d, str) and d not in ranges]
        if unknown:
            raise ArtifactError(
                f"graph {graph.role!r}, input {tensor.name!r}: no range is known for dimension"
                f" {unknown[0]!r}"
            )
        sides = [ranges[d] if isinstance(d, str) else (d, d, d) for d in tensor.shape]
        low, typical, high = (tuple(side[i] for side in sides) for i in range(3))
        result[tensor.name] = Bounds(low, typical, high)
    return result


def covers(profile: Profile, inputs: Mapping[str, NDArray[Any]]) -> bool:
    """Whether every input's shape lies within the profile's bounds."""
    return all(
        len(array.shape) == len(profile[name].min)
        and all(
            low <= side <= high
            for low, side, high in zip(
                profile[name].min, array.shape, profile[name].max, strict=True
            )
        )
        for name, array in inputs.items()
    )


def _kind(role: str) -> str:
    return role.split(".", 1)[0]


def _typical_kept(manifest: Manifest) -> int:
    return max(1, round(manifest.vision.num_patches * manifest.selection.keep_ratio))


def _text_range(manifest: Manifest) -> tuple[int, int, int]:
    longest = manifest.text_tower.context_length if manifest.text_tower else 2
    return (2, min(16, longest), longest)
