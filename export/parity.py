"""Parity gates: the exported directory, run by the engine, against the original model.

Each gate measures on several images and questions and compares with its limit. A gate also needs
its opposite: two different inputs must give different outputs, or agreement would prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import ArtifactError
from edge_atp.pruning import atp
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.runtime.outputs import OPTIONAL_VISION_OUTPUTS, Prompt, VisionOutput
from edge_atp.types import Selection, VisualSignals
from export.gates import BOUNDARY_GAP, Measurements, jaccard_distance, relative_l2
from export.memory import fits, memory_bytes
from export.parity_cut import compare_cut
from export.parity_inputs import ParityInputs, make_inputs
from export.parity_pieces import compare_groups
from export.plan import Sources
from export.precision import get_precision
from export.reference import Reference, ReferenceVision

Float = NDArray[np.float32]


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
    require_memory(sources)
    value_path = settings.relevance_source == "value"
    reference = Reference(settings.checkpoint, sources.tower, settings.embed_layer, value_path)
    engine = Engine.load(directory, "ort-cpu")
    inputs = make_inputs(settings, directory.manifest)
    measured = Measurements(get_precision(settings.precision, settings.dialect).limits)
    try:
        progress("gate: vision, text and selection")
        features = _compare_encoders(reference, engine, inputs, measured)
        cls_embed = reference.cls_embed if sources.tower else None
        compare_groups(engine, inputs.images, cls_embed, measured)
        compare_cut(reference, engine, inputs.images, measured)
        measured.require()
        progress(f"gate: logits of {len(inputs.prompts)} prompts")
        prepared = _compare_logits(reference, engine, inputs, features, measured)
        measured.require()
        progress(f"gate: greedy tokens of {len(inputs.prompts)} prompts")
        _compare_answers(reference, engine, prepared, settings.parity_new_tokens, measured)
        measured.require()
    finally:
        engine.close()
    return {
        "backend": engine.backend,
        "images": len(inputs.images),
        "prompts": len(inputs.prompts),
        "max_new_tokens": settings.parity_new_tokens,
        "gates": measured.as_json(),
    }


def require_memory(sources: Sources) -> None:
    """The original in float32 and the engine's own copy must fit side by side.

    Raises:
        ArtifactError: they do not; says how much is missing.
    """
    needed = 2 * sources.model.float32_bytes()
    if not fits(needed):
        total = (memory_bytes() or (0, 0))[1]
        raise ArtifactError(
            f"comparing with the original takes about {needed / 1e9:.0f} GB of memory, this"
            f" machine has {total / 1e9:.0f}; export on a larger one, or with --no-compare (the"
            " manifest then says that nothing was compared)"
        )


class _Signals(NamedTuple):
    """What ATP reads of one image and question: (N,), (N, P) and (P,)."""

    cls_attention: Float
    patch_embeds: Float
    text_embed: Float

    def select(self, pruner: atp.Method, num_kept: int) -> Selection:
        """What the host's method keeps."""
        return pruner.select(VisualSignals(**self._asdict()), num_kept)


def _compare_encoders(
    reference: Reference, engine: Engine, inputs: ParityInputs, measured: Measurements
) -> list[Float]:
    """Vision, text and selection of every image; returns the engine's patch features."""
    selection = engine.directory.manifest.selection
    pruner = atp.Method(alpha=selection.alpha, relevance_source=selection.relevance_source)
    features: list[Float] = []
    distances: list[float] = []
    for number, pixels in enumerate(inputs.images):
        ours = engine.encode_image(pixels, OPTIONAL_VISION_OUTPUTS)
        theirs = reference.encode_image(pixels)
        error = relative_l2(ours.patch_features, theirs.patch_features)
        measured.add("patch_features_relative_l2", error)
        error = float(np.abs(ours.cls_attention - theirs.cls_attention).max())
        measured.add("cls_attention_max_abs", error)
        _compare_keys(ours, theirs, measured)
        features.append(ours.patch_features)
        if theirs.patch_embeds is None:
            continue
        error = relative_l2(ours.patch_embeds, theirs.patch_embeds)
        measured.add("patch_embeds_relative_l2", error)
        question = inputs.prompts[number].question
        text = engine.encode_text(question)
        expected = reference.encode_text(inputs.text_windows(question)[0])
        measured.add("text_embed_relative_l2", relative_l2(text, expected))
        mine = _Signals(ours.cls_attention, ours.patch_embeds, text)
        original = _Signals(theirs.cls_attention, theirs.patch_embeds, expected)
        measured.add("graph_kept_sets_differing", _graph_difference(engine, pruner, mine))
        distances += [
            _kept_difference(pruner, mine, original, max(1, int(len(features[0]) * ratio)))
            for ratio in (0.25, 0.5)
        ]
    if distances:
        # The mean: two of 64 patches swapped in one picture are 0.06 already.
        measured.add("kept_jaccard_distance", float(np.mean(distances)))
        measured.add("kept_jaccard_distance_worst", max(distances))
    same = min(relative_l2(features[0], other) for other in features[1:])
    measured.add("other_image_same_features", float(same < 1e-3))
    return features


def _compare_keys(ours: VisionOutput, theirs: ReferenceVision, measured: Measurements) -> None:
    """The outputs that few methods read, where the graph has them."""
    for name in ("patch_keys", "last_patch_keys"):
        if (keys := getattr(ours, name)) is not None:
            measured.add(f"{name}_relative_l2", relative_l2(keys, getattr(theirs, name)))
    if ours.last_cls_attention is not None:
        error = float(np.abs(ours.last_cls_attention - theirs.last_cls_attention).max())
        measured.add("last_cls_attention_max_abs", error)


def _graph_difference(engine: Engine, pruner: atp.Method, signals: _Signals) -> float:
    """Tokens kept by the selection graph or the host's method alone, on the same signals."""
    manifest = engine.directory.manifest
    if not any(graph.role == "select_atp" for graph in manifest.graphs):
        return 0.0
    session = engine.open_graph("select_atp")
    num_kept = max(1, manifest.vision.num_patches // 4)
    out = session.run(
        {
            "cls_attention": signals.cls_attention[None],
            "patch_embeds": signals.patch_embeds[None],
            "text_embed": signals.text_embed[None],
            "alpha": np.array(pruner.alpha, np.float32),
            "num_kept": np.array([num_kept], np.int64),
        }
    )
    host = signals.select(pruner, num_kept)
    if _boundary_gap(host, num_kept) < BOUNDARY_GAP:
        return 0.0
    return float(len(np.setxor1d(out["kept_indices"], host.kept_indices)))


def _kept_difference(pruner: atp.Method, ours: _Signals, theirs: _Signals, num_kept: int) -> float:
    """1 - Jaccard of the kept sets; 0 if the scores at the boundary are too close to tell."""
    mine, original = ours.select(pruner, num_kept), theirs.select(pruner, num_kept)
    if _boundary_gap(original, num_kept) < BOUNDARY_GAP:
        return 0.0
    return jaccard_distance(mine.kept_indices, original.kept_indices)


def _boundary_gap(selection: Selection, num_kept: int) -> float:
    """Distance between the last kept and the first dropped score; infinite if none is dropped."""
    assert selection.scores is not None  # ATP scores every patch
    ranked = np.sort(selection.scores)[::-1]
    return float(ranked[num_kept - 1] - ranked[num_kept]) if num_kept < len(ranked) else np.inf


@dataclass(frozen=True)
class _Prepared:
    """One prompt for both sides; ``dense`` holds generate's own inputs where all is kept."""

    prompt: Prompt
    dense: dict[str, NDArray[Any]]


def _compare_logits(
    reference: Reference,
    engine: Engine,
    inputs: ParityInputs,
    features: list[Float],
    measured: Measurements,
) -> list[_Prepared]:
    """Projector, prompt and logits: even prompts dense, odd ones pruned to a quarter."""
    prepared, rows = [], set()
    for number, item in enumerate(inputs.prompts):
        patches = features[item.image]
        kept = np.arange(len(patches))[:: 4 if number % 2 else 1]
        projected = engine.project(patches, kept)
        error = relative_l2(projected, reference.project(patches[kept]))
        measured.add("image_embeds_relative_l2", error)
        prompt = engine.embed_prompt(item.question, [projected])
        ids = inputs.prompt_ids(item.question, len(kept))
        expected = reference.embed_tokens(ids)
        expected[ids == inputs.image_token_id] = projected
        same = expected.shape == prompt.inputs_embeds.shape and bool(
            (expected == prompt.inputs_embeds).all()
        )
        measured.add("prompts_differing", float(not same))
        ours = engine.last_logits(prompt.inputs_embeds)
        error = float(np.abs(ours - reference.last_logits(expected)).max())
        measured.add("logits_max_abs", error)
        rows.add(tuple(np.round(ours, 3)))
        dense: dict[str, NDArray[Any]] = {
            "input_ids": ids[None],
            "pixel_values": inputs.images[item.image],
        }
        prepared.append(_Prepared(prompt, {} if number % 2 else dense))
    measured.add("other_prompt_same_logits", float(len(rows) < 2))
    return prepared


def _compare_answers(
    reference: Reference,
    engine: Engine,
    prepared: list[_Prepared],
    max_new_tokens: int,
    measured: Measurements,
) -> None:
    """Greedy tokens: dense prompts through the whole original model, pruned ones by embeddings."""
    eos = set(engine.directory.manifest.llm.eos_token_ids)
    total = different = 0
    for item in prepared:
        inputs = item.dense or {"inputs_embeds": item.prompt.inputs_embeds[None]}
        tokens = reference.generate(max_new_tokens, **inputs)
        ours = engine.generate(item.prompt, max_new_tokens=max_new_tokens).token_ids
        wanted = tuple(t for t in tokens if t not in eos)
        same = sum(a == b for a, b in zip(ours, wanted, strict=False))
        total += max(len(ours), len(wanted))
        different += max(len(ours), len(wanted)) - same
    measured.add("token_disagreement", different / max(total, 1))
