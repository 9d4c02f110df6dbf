"""Parity gates: the exported directory, run by the engine, against the original model.

Each gate measures on several images and questions and compares with its limit. A gate also needs
its opposite: two different inputs must give different outputs, or agreement would prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import ArtifactError
from edge_atp.pruning import atp
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.types import VisualSignals
from export.parity_inputs import ParityInputs, make_inputs
from export.reference import Reference

if TYPE_CHECKING:
    from export.recipe import Sources

Float = NDArray[np.float32]

# Below this distance between the last kept and the first dropped score, float32 rounding may
# order them either way.
_BOUNDARY_GAP = 1e-5
_MAX_NEW_TOKENS = 16


@dataclass(frozen=True)
class Gate:
    """One limit. ``value`` is the worst measurement; it must not exceed ``limit``."""

    name: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the value is within the limit (NaN is not)."""
        return self.value <= self.limit


@dataclass
class _Measured:
    """Worst values over all inputs, by gate name."""

    worst: dict[str, float] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, value: float, limit: float) -> None:
        # np.fmax would hide NaN; np.maximum keeps it, and a NaN fails its gate.
        self.worst[name] = float(np.maximum(self.worst.get(name, 0.0), value))
        self.limits[name] = limit

    def gates(self) -> list[Gate]:
        return [Gate(name, self.worst[name], self.limits[name]) for name in self.worst]


def run_gates(
    sources: Sources, directory: ModelDirectory, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Compare a directory with its checkpoint.

    Returns:
        What the manifest records: per gate the worst value and its limit, and the counts.
    Raises:
        ArtifactError: a gate failed; the message lists each with value and limit.
    """
    settings = sources.settings
    reference = Reference(settings.checkpoint, sources.tower, settings.embed_layer)
    engine = Engine.load(directory, "ort-cpu")
    inputs = make_inputs(settings, directory.manifest)
    measured = _Measured()
    try:
        progress("gate: vision, text and selection")
        features = _compare_encoders(reference, engine, inputs, measured)
        progress(f"gate: greedy tokens on {len(inputs.prompts)} prompts")
        _compare_answers(reference, engine, inputs, features, measured)
    finally:
        engine.close()
    gates = measured.gates()
    if failed := [g for g in gates if not g.passed]:
        lines = "; ".join(f"{g.name} is {g.value:.3g}, limit {g.limit:.3g}" for g in failed)
        raise ArtifactError(f"parity failed, nothing was written: {lines}")
    return {
        "backend": engine.backend,
        "images": len(inputs.images),
        "prompts": len(inputs.prompts),
        "max_new_tokens": _MAX_NEW_TOKENS,
        "gates": {g.name: {"value": g.value, "limit": g.limit} for g in gates},
    }


def _compare_encoders(
    reference: Reference, engine: Engine, inputs: ParityInputs, measured: _Measured
) -> list[Float]:
    """Vision, text and selection of every image; returns the engine's patch features."""
    alpha = engine.directory.manifest.selection.alpha
    features = []
    for number, pixels in enumerate(inputs.images):
        ours, theirs = engine.encode_image(pixels), reference.encode_image(pixels)
        error = _relative_l2(ours.patch_features, theirs.patch_features)
        measured.add("patch_features_relative_l2", error, 1e-4)
        error = float(np.abs(ours.cls_attention - theirs.cls_attention).max())
        measured.add("cls_attention_max_abs", error, 1e-6)
        features.append(ours.patch_features)
        if theirs.patch_embeds is None:
            continue
        error = _relative_l2(ours.patch_embeds, theirs.patch_embeds)
        measured.add("patch_embeds_relative_l2", error, 1e-4)
        question = inputs.prompts[number].question
        text = engine.encode_text(question)
        expected = reference.encode_text(inputs.text_windows(question)[0])
        measured.add("text_embed_relative_l2", _relative_l2(text, expected), 1e-4)
        pruner = atp.Method(alpha=alpha)
        mine = VisualSignals(
            cls_attention=ours.cls_attention, patch_embeds=ours.patch_embeds, text_embed=text
        )
        original = VisualSignals(
            cls_attention=theirs.cls_attention,
            patch_embeds=theirs.patch_embeds,
            text_embed=expected,
        )
        wrong = max(
            _kept_difference(pruner, mine, original, max(1, int(len(features[0]) * ratio)))
            for ratio in (0.25, 0.5)
        )
        measured.add("kept_sets_differing", wrong, 0.0)
    same = min(_relative_l2(features[0], other) for other in features[1:])
    measured.add("other_image_same_features", float(same < 1e-3), 0.0)
    return features


def _kept_difference(
    pruner: atp.Method, ours: VisualSignals, theirs: VisualSignals, num_kept: int
) -> float:
    """Tokens kept by one side only, unless the scores at the boundary are too close to tell."""
    mine, original = pruner.select(ours, num_kept), pruner.select(theirs, num_kept)
    ranked = np.sort(original.scores)[::-1]
    if num_kept < len(ranked) and ranked[num_kept - 1] - ranked[num_kept] < _BOUNDARY_GAP:
        return 0.0
    return float(len(np.setdiff1d(mine.kept_indices, original.kept_indices)))


def _compare_answers(
    reference: Reference,
    engine: Engine,
    inputs: ParityInputs,
    features: list[Float],
    measured: _Measured,
) -> None:
    """Logits and greedy tokens: odd prompts pruned to a quarter, even ones dense."""
    answers = set()
    eos = set(engine.directory.manifest.llm.eos_token_ids)
    for number, prompt in enumerate(inputs.prompts):
        patches = features[prompt.image]
        kept = np.arange(len(patches))[:: 4 if number % 2 else 1]
        projected = engine.project(patches, kept)
        embeds = engine.embed_prompt(prompt.question, [projected]).inputs_embeds
        ids = inputs.prompt_ids(prompt.question, len(kept))
        error = _relative_l2(projected, reference.project(patches[kept]))
        measured.add("image_embeds_relative_l2", error, 1e-4)
        expected = reference.embed_tokens(ids)
        expected[ids == inputs.image_token_id] = projected
        if expected.shape != embeds.shape:
            measured.add("prompts_differing", 1.0, 0.0)
            continue
        measured.add("prompts_differing", float(np.abs(expected - embeds).max() > 0), 0.0)
        ours = engine.last_logits(embeds)
        error = float(np.abs(ours - reference.last_logits(embeds)).max())
        measured.add("logits_max_abs", error, 1e-3)
        if number % 2:
            tokens = reference.generate(_MAX_NEW_TOKENS, inputs_embeds=embeds[None])
        else:
            pixels = inputs.images[prompt.image]
            tokens = reference.generate(_MAX_NEW_TOKENS, input_ids=ids[None], pixel_values=pixels)
        generated = engine.generate(
            engine.embed_prompt(prompt.question, [projected]), max_new_tokens=_MAX_NEW_TOKENS
        )
        wanted = tuple(t for t in tokens if t not in eos)
        measured.add("answers_differing", float(generated.token_ids != wanted), 0.0)
        answers.add((tuple(np.round(ours, 3)), generated.token_ids))
    measured.add("other_prompt_same_logits", float(len(answers) < 2), 0.0)


def _relative_l2(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    return float(np.linalg.norm(ours - theirs) / max(float(np.linalg.norm(theirs)), 1e-12))
