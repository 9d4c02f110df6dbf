"""Methods that cut inside the vision encoder or the language model, on an exported directory.

Puts their stages together: the encoder in groups, the row that IVTP's language stage scores from,
and the prompt with its position ids. Position-id policy, as in ``edge_atp.hf``: what leaves inside
the language model or by IVTP keeps the others' positions (PyramidDrop renumbers, as published);
what leaves in the encoder by any other method leaves no gap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import ConfigError
from edge_atp.pruning import ivtp
from edge_atp.pruning.base import InModelPruner
from edge_atp.runtime import in_llm, in_vit
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.in_vit.encoder import GroupedEncoder, PrunedVision
from edge_atp.runtime.manifest import Manifest
from edge_atp.runtime.outputs import EncoderCut, Float, Prompt

OnLap = Callable[[str], object]


def cuts_encoder(pruner: InModelPruner) -> bool:
    """Whether patches leave inside the vision encoder, so that the image is encoded for it."""
    return pruner.name in in_vit.available()


def in_model_methods() -> tuple[str, ...]:
    """Names of the methods that cut inside an exported model."""
    return tuple(sorted({*in_vit.available(), *in_llm.available()}))


def require_graphs(pruner: InModelPruner, manifest: Manifest) -> None:
    """Refuse a directory that is not in the pieces ``pruner`` cuts between.

    Raises:
        ConfigError: the model directory lacks the graphs ``pruner`` cuts between; says how to
            export them.
    """
    if missing := _missing_options(pruner, manifest):
        parts = {"--vision-groups": "vision encoder", "--block-layers": "language model"}
        where = " and the ".join(parts[option] for option in missing)
        options = " ".join(f"{option} 1" for option in missing)
        raise ConfigError(
            f"{pruner.name} cuts inside the {where}, which this directory of"
            f" {manifest.source.model} holds in one piece; export it in pieces with `python -m"
            f" export --model models/{manifest.source.model}.yaml --out DIR {options}` (or the"
            " checkpoint's folder), or choose a method that cuts between the two, such as atp"
        )


def _missing_options(pruner: InModelPruner, manifest: Manifest) -> list[str]:
    missing = []
    if cuts_encoder(pruner) and not manifest.vision.group_layers:
        missing.append("--vision-groups")
    if pruner.site == "in_llm" and not manifest.llm.block_layers:
        missing.append("--block-layers")
    return missing


class InModelRunner:
    """Encodes images and builds prompts for methods that cut inside the model.

    Args:
        engine: the loaded model; its graphs for this are opened when first needed.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._manifest = engine.directory.manifest

    def check(self, pruner: InModelPruner, num_kept: int | None) -> None:
        """Refuse a method that does not fit, by what the manifest says; opens nothing.

        Raises:
            ConfigError: the directory lacks the graphs, or the method's layers or budget do not
                fit this model.
        """
        require_graphs(pruner, self._manifest)
        vision = self._manifest.vision
        if not cuts_encoder(pruner):
            pruner.schedule(vision.num_patches, num_kept)
            return
        self.encoder.check(in_vit.load_rule(pruner, vision, num_kept))

    def open(self, pruner: InModelPruner, should_stop: Callable[[], bool] | None = None) -> bool:
        """Open the pieces of the encoder that ``pruner`` runs, so that no answer's time holds it.

        Args:
            should_stop: see ``GroupedEncoder.open``.
        Returns:
            Whether one of them was not open yet.
        Raises:
            ConfigError: the directory lacks the graphs.
            ArtifactError: a graph is missing or damaged.
        """
        require_graphs(pruner, self._manifest)
        return self.encoder.open(with_cls=pruner.site == "in_llm", should_stop=should_stop)

    def encode(
        self,
        pixel_values: Float,
        pruner: InModelPruner,
        num_kept: int | None,
        on_lap: OnLap | None = None,
    ) -> PrunedVision:
        """Encode one preprocessed image, cutting as ``pruner`` says.

        Args:
            pixel_values: (1, 3, size, size).
            num_kept: visual tokens of this image that the method leaves in the end; None for its
                own ratios.
            on_lap: told "vision_encode" when graphs have run and "prune" when a cut was decided.
        Raises:
            ConfigError: the directory lacks the graphs, or the method's layers do not fit.
        """
        require_graphs(pruner, self._manifest)
        rule = in_vit.load_rule(pruner, self._manifest.vision, num_kept)
        return self.encoder.encode(pixel_values, rule, on_lap)

    @property
    def encoder(self) -> GroupedEncoder:
        """The encoder in groups; the directory has group_layers."""
        return self._engine.grouped_encoder

    def project(self, image: PrunedVision) -> Float:
        """(K, H) the language model's tokens of an image that ``encode`` has cut."""
        return self._engine.project(image.patch_features, np.arange(len(image.place)))

    def prompt(
        self, pruner: InModelPruner, question: str, images: Sequence[PrunedVision]
    ) -> Prompt:
        """The language model's input for images that ``encode`` has cut."""
        projected = [self.project(image) for image in images]
        prompt = self._engine.embed_prompt(question, projected)
        return self.add_language_stage(prompt, pruner, question, images)

    def add_language_stage(
        self,
        prompt: Prompt,
        pruner: InModelPruner,
        question: str,
        images: Sequence[PrunedVision],
    ) -> Prompt:
        """The prompt with what the method's cuts in the language model need, if it has any.

        Raises:
            MissingSignalError: ivtp, and the directory has no text encoder that gives tokens.
        """
        if not isinstance(pruner, ivtp.Method):
            return prompt
        assert prompt.is_visual is not None  # embed_prompt sets it
        num_patches = self._manifest.vision.num_patches
        places = [image.place for image in images]
        side_row = self._side_row(question, images, pruner.threshold)
        return replace(
            prompt,
            position_ids=original_positions(prompt.is_visual, places, num_patches),
            encoder_cut=EncoderCut(num_patches, len(images), side_row),
        )

    def _side_row(self, question: str, images: Sequence[PrunedVision], threshold: float) -> Float:
        """(H,) IVTP's pseudo-CLS; several images count with their mean CLS."""
        engine = self._engine
        text = " ".join(question.split())
        clip_tokens, clip_spans = engine.encode_text_tokens(text)
        tokens, spans = engine.embed_text_tokens(text)
        joint = np.mean([self.encoder.cls_embed(image) for image in images], axis=0)
        relevance = ivtp.text_relevance(clip_tokens, joint)
        relevance = ivtp.map_relevance(relevance, clip_spans, spans)
        only = np.zeros(1, np.int64)
        projected = [engine.project(image.cls_feature[None], only)[0] for image in images]
        visual_cls = np.mean(projected, axis=0)
        row: Float = ivtp.pseudo_cls(tokens, relevance, visual_cls, threshold)
        return row


def original_positions(
    is_visual: NDArray[np.bool_], places: Sequence[NDArray[np.int64]], num_patches: int
) -> NDArray[np.int64]:
    """(S,) position ids the tokens would have if no patch were missing.

    Args:
        is_visual: (S,), the images' tokens in order.
        places: of each image, (K_i,) ascending patches that are left.
        num_patches: of one image, N.
    """
    visual = np.flatnonzero(is_visual)
    positions = np.arange(len(is_visual))
    start = 0
    for place in places:
        rows = visual[start : start + len(place)]
        start += len(place)
        positions[rows] += place - np.arange(len(place))
        positions[rows[-1] + 1 :] += num_patches - len(place)
    return positions
