"""Golden answers: what a model directory gave where it was exported, re-run on this device.

``golden.json`` holds a few questions about generated test pictures with the kept patches and the
answer tokens. Re-running them needs neither torch nor the checkpoint, and shows whether this
machine's backend, precision and libraries still compute the same model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import ArtifactError
from edge_atp.pruning import load
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.schema import parse, to_json
from edge_atp.types import VisualSignals

ROLE = "golden"
_NUM_IMAGES = 3
_KEEP_RATIOS = (1.0, 0.25)
_MAX_NEW_TOKENS = 12
# Rounding differs between processors and backend versions, more so where activations are
# quantised at run time (int8: 0.969 between onnxruntime 1.18 and 1.31); beyond these shares it is
# another model.
MIN_KEPT_JACCARD = 0.97
MIN_KEPT_JACCARD_QUANTISED = 0.93
MIN_TOKEN_AGREEMENT = 0.98


@dataclass(frozen=True)
class GoldenCase:
    """One question about test picture number ``image``, and what came out."""

    image: int
    question: str
    keep_ratio: float
    kept_indices: tuple[int, ...]
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class GoldenReport:
    """Agreement with the recorded answers, worst case of all.

    kept_jaccard: smallest overlap of kept patches; token_agreement: share of equal tokens.
    min_kept_jaccard: smallest overlap that passes at this precision.
    """

    cases: int
    kept_jaccard: float
    token_agreement: float
    min_kept_jaccard: float = MIN_KEPT_JACCARD

    @property
    def passed(self) -> bool:
        """Whether this device computes the same model."""
        same_patches = self.kept_jaccard >= self.min_kept_jaccard
        return same_patches and self.token_agreement >= MIN_TOKEN_AGREEMENT


def record(engine: Engine, questions: tuple[str, ...]) -> list[GoldenCase]:
    """Run every test picture with one question each, dense and pruned."""
    return [
        _run(engine, image, questions[image % len(questions)], ratio)
        for image in range(_NUM_IMAGES)
        for ratio in _KEEP_RATIOS
    ]


def write_golden(path: Path, cases: list[GoldenCase]) -> None:
    """Write ``golden.json``."""
    path.write_text(json.dumps([to_json(case) for case in cases]) + "\n", encoding="utf-8")


def verify(engine: Engine) -> GoldenReport:
    """Re-run the recorded cases of the engine's directory.

    Raises:
        ArtifactError: the directory has none, or the file is damaged.
    """
    path = engine.directory.file(ROLE)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); export the model again") from error
    if not isinstance(raw, list) or not raw:
        raise ArtifactError(f"{path} holds no cases; export the model again")
    jaccard, equal, total = 1.0, 0, 0
    for number, item in enumerate(raw):
        expected = parse(GoldenCase, item, f"{path.name}[{number}]")
        found = _run(engine, expected.image, expected.question, expected.keep_ratio)
        kept, wanted = set(found.kept_indices), set(expected.kept_indices)
        jaccard = min(jaccard, len(kept & wanted) / len(kept | wanted))
        pairs = zip(found.token_ids, expected.token_ids, strict=False)
        equal += sum(a == b for a, b in pairs)
        total += max(len(found.token_ids), len(expected.token_ids))
    exact = engine.directory.manifest.precision.compute in ("fp32", "fp16")
    return GoldenReport(
        len(raw),
        jaccard,
        equal / total if total else 1.0,
        MIN_KEPT_JACCARD if exact else MIN_KEPT_JACCARD_QUANTISED,
    )


def _run(engine: Engine, image: int, question: str, keep_ratio: float) -> GoldenCase:
    manifest = engine.directory.manifest
    vision = engine.encode_image(pattern_picture(manifest.preprocess.size, image))
    count = manifest.vision.num_patches
    signals: dict[str, Any] = {"cls_attention": vision.cls_attention}
    method: str = "cls_topk"
    options: dict[str, Any] = {}
    if manifest.text_tower is not None:
        spec = manifest.selection
        method = "atp"
        options = {"alpha": spec.alpha, "relevance_source": spec.relevance_source}
        signals["patch_embeds"] = vision.patch_embeds
        signals["text_embed"] = engine.encode_text(question)
    pruner = load(method, **options)
    kept = pruner.select(VisualSignals(**signals), max(1, round(count * keep_ratio))).kept_indices
    prompt = engine.embed_prompt(question, [engine.project(vision.patch_features, kept)])
    generation = engine.generate(prompt, max_new_tokens=_MAX_NEW_TOKENS)
    indices = tuple(int(index) for index in kept)
    return GoldenCase(image, question, keep_ratio, indices, generation.token_ids)


def pattern_picture(size: int, number: int) -> NDArray[np.float32]:
    """A smooth coloured pattern as pixel_values (1, 3, size, size), the same on every machine."""
    rows, cols = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j]
    channels = [
        np.sin((3 + number) * rows * (c + 1) + 5 * cols) + np.cos((7 - c) * cols * (number + 1))
        for c in range(3)
    ]
    return np.stack(channels)[None].astype(np.float32)
