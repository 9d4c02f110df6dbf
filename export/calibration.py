"""Ranges of what enters each linear layer, measured on the model's own data.

The float graphs are emitted once more with one extra output per linear layer, the largest
magnitude of each channel of its input, and run on calibration pictures and prompts (with their
answers, where the data set has them). Knows nothing of what the ranges are used for;
``linear_forms.qdq_linear`` does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto

from edge_atp.errors import ArtifactError, ConfigError
from edge_atp.evaluation.dataset import LabelledDataset
from edge_atp.preprocess import Preprocessor
from edge_atp.runtime.manifest import Manifest, PreprocessSpec
from edge_atp.runtime.text import load_tokenizer
from export.graph import GraphBuilder
from export.linear_forms import float_linear
from export.memory import fits
from export.parity_inputs import ParityInputs, make_inputs
from export.plan import Sources, plan_graphs

# Runs a prompt in one piece with explicit positions and no cache.
_DIALECT = "prim18"
_MAX_IMAGES = 64
_PROMPTS_PER_IMAGE = 4
_AMAX = "amax/"
_OUTPUT = {"vision": "patch_features", "project": "image_embeds", "decoder": "logits"}

# (K,) by layer: largest magnitude of each of its K inputs.
Ranges = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class CalibrationPrompt:
    """One picture (1, 3, size, size) and the token ids asked about it, one image token in them."""

    pixels: NDArray[np.float32]
    token_ids: list[NDArray[np.int64]]


def calibrate(
    sources: Sources, manifest: Manifest, progress: Callable[[str], None]
) -> dict[str, Ranges]:
    """Largest magnitude of each input channel of every linear layer, by kind of graph and layer.

    Raises:
        ConfigError: the calibration set holds fewer than two pictures.
        ArtifactError: the float model does not fit into memory, or a range is not finite.
    """
    if not fits(sources.model.float32_bytes()):
        raise ArtifactError(
            f"calibration runs the model in float32, which takes about"
            f" {sources.model.float32_bytes() / 1e9:.0f} GB of memory; calibrate on a larger"
            " machine, or choose a precision of weights alone"
        )
    progress(f"calibrating on {sources.settings.calibration_set or 'synthetic pictures'}")
    with tempfile.TemporaryDirectory(prefix="edge_atp_calibration_") as folder:
        model = _ObservedModel(sources, Path(folder))
        for prompt in _prompts(sources, manifest):
            model.observe(prompt, manifest)
    for kind, ranges in model.ranges.items():
        if bad := [name for name, value in ranges.items() if not np.isfinite(value).all()]:
            raise ArtifactError(f"{kind}: the input of {bad[0]} is not finite on calibration data")
    return model.ranges


class _ObservedModel:
    """Vision encoder, projector and decoder, all reporting what enters their linear layers."""

    def __init__(self, sources: Sources, folder: Path) -> None:
        self._llm = sources.model.llm
        self._image_token = sources.model.image_token_id
        self._table = sources.model.tensors.get("llm.embed_tokens.weight")
        settings = replace(
            sources.settings, dialect=_DIALECT, precision="fp32", block_layers=0, vision_groups=0
        )
        plain = replace(sources, settings=settings)
        self._sessions: dict[str, ort.InferenceSession] = {}
        self.ranges: dict[str, Ranges] = {}
        for item in plan_graphs(plain):
            if item.role in _OUTPUT:
                weights = folder / f"{item.role}.weights"
                graph = GraphBuilder(item.role, weights, linear_form=_observed_linear)
                item.emit(graph)
                graph.save(folder / f"{item.role}.onnx")
                self._sessions[item.role] = ort.InferenceSession(
                    str(folder / f"{item.role}.onnx"), providers=["CPUExecutionProvider"]
                )
                self.ranges[item.kind] = {}

    def observe(self, prompt: CalibrationPrompt, manifest: Manifest) -> None:
        """Encode the picture, then each prompt with all patches and with the default share."""
        features = self._run("vision", {"pixel_values": prompt.pixels})
        count = features.shape[1]
        kept = max(1, round(count * manifest.selection.keep_ratio))
        for number, ids in enumerate(prompt.token_ids):
            indices = np.arange(count) if number % 2 else np.linspace(0, count - 1, kept).round()
            feed: dict[str, NDArray[Any]] = {"patch_features": features}
            feed["kept_indices"] = indices.astype(np.int64)
            image = self._run("project", feed)[0]
            place = int(np.flatnonzero(ids == self._image_token)[0])
            parts = [self._embed(ids[:place]), image, self._embed(ids[place + 1 :])]
            self._prefill(np.concatenate(parts)[None])

    def _embed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._table[ids].astype(np.float32)

    def _prefill(self, embeds: NDArray[np.float32]) -> None:
        length = embeds.shape[1]
        hidden = np.triu(np.full((length, length), np.finfo(np.float32).min, np.float32), 1)
        empty = np.zeros((1, self._llm.kv_heads, 0, self._llm.head_dim), np.float32)
        past = {
            f"past.{layer}.{kind}": empty
            for layer in range(self._llm.layers)
            for kind in ("key", "value")
        }
        positions = np.arange(length, dtype=np.int64)[None]
        self._run(
            "decoder",
            {
                "inputs_embeds": embeds,
                "position_ids": positions,
                "attention_bias": hidden[None, None],
                **past,
            },
        )

    def _run(self, role: str, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The graph's main output; the ranges are noted on the way."""
        session = self._sessions[role]
        watched = [o.name for o in session.get_outputs() if o.name.startswith(_AMAX)]
        main, *largest = session.run([_OUTPUT[role], *watched], inputs)
        ranges = self.ranges[role]
        for name, value in zip(watched, largest, strict=True):
            layer = name[len(_AMAX) :]
            # np.maximum keeps NaN, which is then refused.
            ranges[layer] = np.maximum(ranges.get(layer, np.float32(0)), value)
        result: NDArray[np.float32] = main
        return result


def _observed_linear(
    graph: GraphBuilder, x: str, name: str, weight: NDArray[Any], bias: NDArray[Any] | None
) -> str:
    largest = graph.reduce("ReduceMax", graph.node("Abs", x), 0, 1, keepdims=False)
    graph.output(f"{_AMAX}{name}", largest, TensorProto.FLOAT, [weight.shape[0]])
    return float_linear(graph, x, name, weight, bias)


def _prompts(sources: Sources, manifest: Manifest) -> Iterator[CalibrationPrompt]:
    """The calibration set where there is one, and always the pictures of the parity gates.

    Those are what the kept patches are compared on: with ranges of other pictures alone they would
    saturate.
    """
    inputs = make_inputs(sources.settings, manifest)
    if sources.settings.calibration_set:
        yield from _labelled_prompts(sources, manifest.preprocess, inputs)
    for number, pixels in enumerate(inputs.images):
        asked = [p.question for p in inputs.prompts if p.image == number]
        yield CalibrationPrompt(
            pixels, [inputs.prompt_ids(q, 1) for q in asked[:_PROMPTS_PER_IMAGE]]
        )


def _labelled_prompts(
    sources: Sources, spec: PreprocessSpec, inputs: ParityInputs
) -> Iterator[CalibrationPrompt]:
    """Pictures, questions and answers of the calibration set."""
    dataset = LabelledDataset.open(sources.settings.calibration_set, _MAX_IMAGES)
    if len(dataset.images) < 2:
        raise ConfigError(
            f"calibration_set {dataset.path} holds {len(dataset.images)} pictures; at least 2"
            " are needed"
        )
    preprocess = Preprocessor(spec.size, spec.mean, spec.std, spec.resize)
    tokenizer = load_tokenizer(sources.tokenizer)
    for number, (image, examples) in enumerate(dataset.by_image()):
        # Another part of the questions for each picture: families come in a fixed order.
        start = number * _PROMPTS_PER_IMAGE % len(examples)
        chosen = (examples[start:] + examples[:start])[:_PROMPTS_PER_IMAGE]
        ids = []
        for example in chosen:
            answer = tokenizer.encode(f" {example.answer}", add_special_tokens=False).ids
            ids.append(np.append(inputs.prompt_ids(example.question, 1), answer).astype(np.int64))
        yield CalibrationPrompt(preprocess(dataset.read_image(image))[0], ids)
