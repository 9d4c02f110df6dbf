"""Frame and question in, answer and kept-patch mask out: the only file that names every stage.

    preprocess -> encode -> score and select -> project -> prefill -> decode

Knows nothing of ROS, cameras or queues; one call at a time (the caller owns the thread).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge_atp import pruning
from edge_atp.budget import Budget, plan
from edge_atp.config import PipelineConfig
from edge_atp.cost_model import Work
from edge_atp.errors import ConfigError, InvalidQueryError
from edge_atp.latency_budget import LatencyBudget, find_latency_budget
from edge_atp.mask import to_bool
from edge_atp.preprocess import Preprocessor
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.find_model import find_model
from edge_atp.runtime.manifest import Manifest
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.runtime.outputs import Generation, Prompt, VisionOutput
from edge_atp.runtime.running import running
from edge_atp.timing import StageClock
from edge_atp.types import (
    Answer,
    Array,
    Frame,
    PatchGrid,
    PatchMask,
    Policy,
    Query,
    Selection,
    SourceRegion,
    Status,
    TokenCounts,
    VisualSignals,
)

_FINISH_STATUS = {"eos": Status.FINAL, "length": Status.TRUNCATED, "stopped": Status.CANCELED}


@dataclass(frozen=True)
class Encoding:
    """One frame after the vision encoder; several questions may share it."""

    frame: Frame
    region: SourceRegion
    vision: VisionOutput


class Pipeline:
    """A loaded model that answers questions about frames.

    Args:
        engine: loaded graphs.
        directory: the model directory they came from.
        config: defaults for questions that do not say otherwise.
        latency: what this device is known to take, for Policy.LATENCY_BUDGET; None looks for its
            calibration.
    Raises:
        ConfigError: the default method or alpha does not fit, or latency_budget_ms or calibration
            is set and there is no calibration of this model and device.
    """

    def __init__(
        self,
        engine: Engine,
        directory: ModelDirectory,
        config: PipelineConfig,
        latency: LatencyBudget | None = None,
    ) -> None:
        manifest = directory.manifest
        self.engine = engine
        self.manifest = manifest
        self.config = config
        self.grid = PatchGrid(manifest.vision.patch_grid.rows, manifest.vision.patch_grid.cols)
        self.preprocess = Preprocessor(
            size=manifest.preprocess.size,
            mean=manifest.preprocess.mean,
            std=manifest.preprocess.std,
            rule=manifest.preprocess.resize,
        )
        self.default_budget = self._default_budget()
        self.latency = latency or find_latency_budget(
            running(directory, engine.backend, config.num_threads),
            config.calibration,
            required=config.latency_budget_ms > 0,
        )
        self._pruner(self.default_budget)  # an unknown default is an error now, not per question

    @classmethod
    def load(cls, config: PipelineConfig | None = None) -> Pipeline:
        """Open the model directory (every hash checked) and start the backend.

        Raises:
            ArtifactError, BackendUnavailableError, ConfigError.
        """
        config = config or PipelineConfig()
        directory = ModelDirectory.open(find_model(config.model))
        engine = Engine.load(directory, config.engine, num_threads=config.num_threads)
        return cls(engine, directory, config)

    def answer(
        self,
        query: Query,
        frames: Sequence[Frame] | Sequence[Encoding],
        *,
        accepted_s: float | None = None,
        frame_age_s: float = 0.0,
        on_text: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Answer:
        """Answer one question about one or several frames.

        Args:
            query: the question.
            frames: in the order in which the model sees them; encodings from ``encode`` to share
                one encoding between several questions.
            accepted_s: ``time.perf_counter()`` when the question was accepted.
            frame_age_s: age of the newest frame when work began.
            on_text: called with the text so far after each token.
            should_stop: asked between tokens; True ends the answer as CANCELED.
        Raises:
            EdgeAtpError: see ``edge_atp.errors``.
        """
        self.check(query, num_frames=len(frames))
        clock = StageClock(accepted_s, frame_age_s)
        budget = self._plan(query, len(frames))
        encodings = [self._encoded(frame, clock) for frame in frames]
        selections = [self.select(encoding, query.text, budget) for encoding in encodings]
        clock.lap("prune")
        prompt = self._prompt(query, encodings, selections)
        generation = self._generate(query, prompt, clock, on_text, should_stop)
        clock.lap("decode")
        answer = self._assemble(query, budget, encodings, selections, prompt, generation, clock)
        encoded = sum(isinstance(frame, Frame) for frame in frames)
        return self.latency.compare(query, answer, self._longest(query), encoded)

    def check(self, query: Query, num_frames: int = 1) -> None:
        """Refuse a question that cannot be answered, before any work is spent on it.

        Raises:
            InvalidQueryError: empty or too long text, bad pruning request, no frame.
        """
        limit = self.config.max_prompt_chars
        if not query.text.strip():
            raise InvalidQueryError("text is empty; ask a question")
        if len(query.text) > limit:
            raise InvalidQueryError(
                f"text has {len(query.text)} characters; at most {limit} (max_prompt_chars)"
            )
        if num_frames == 0:
            raise InvalidQueryError("no frame to answer about")
        if query.max_new_tokens < 0:
            raise InvalidQueryError(
                f"max_new_tokens is {query.max_new_tokens}; 0 (the default) or a positive number"
            )
        if query.choices:
            raise InvalidQueryError("choices are not supported in this version; leave them empty")
        budget = self._plan(query, num_frames)
        try:
            self._pruner(budget)
        except ConfigError as error:
            raise InvalidQueryError(f"prune.method: {error}") from error

    def encode(self, frame: Frame, clock: StageClock | None = None) -> Encoding:
        """Preprocess and run the vision encoder on one frame."""
        clock = clock or StageClock()
        pixel_values, region = self.preprocess(frame.image)
        clock.lap("preprocess")
        vision = self.engine.encode_image(pixel_values)
        clock.lap("vision_encode")
        return Encoding(frame, region, vision)

    def select(self, encoding: Encoding, question: str, budget: Budget) -> Selection:
        """Score the patches of one frame against the question and choose those that stay."""
        pruner = self._pruner(budget)
        signals = self._signals(encoding.vision, question, pruner.needs)
        num_patches = self.grid.num_patches
        scores: Array | None = None
        if budget.policy is Policy.SCORE_MASS:
            scores = pruner.select(signals, num_patches).scores
        return pruner.select(signals, budget.num_kept(num_patches, scores))

    def close(self) -> None:
        """Release the backend's memory."""
        self.engine.close()

    def _plan(self, query: Query, num_images: int) -> Budget:
        """Settle how many tokens each image keeps; a latency budget becomes a number of tokens."""
        spec = query.prune
        if spec.policy is Policy.NODE_DEFAULT and self.config.latency_budget_ms > 0:
            seconds = self.config.latency_budget_ms / 1e3
            spec = replace(spec, policy=Policy.LATENCY_BUDGET, latency_budget_s=seconds)

        def fits(seconds: float, method: str) -> int:
            text = len(self.engine.prompt_tokens(query.text, num_images).ids) - num_images
            work = Work(0, text, self._longest(query), num_images, num_images)
            return self.latency.num_kept(seconds, query.text, work, method)

        return plan(spec, self.default_budget, fits)

    def _longest(self, query: Query) -> int:
        return query.max_new_tokens or self.config.max_new_tokens

    def _encoded(self, frame: Frame | Encoding, clock: StageClock) -> Encoding:
        return frame if isinstance(frame, Encoding) else self.encode(frame, clock)

    def _default_budget(self) -> Budget:
        model = self.manifest.selection
        config = self.config
        return Budget(
            policy=Policy.KEEP_RATIO,
            method=config.method or model.method,
            alpha=config.alpha if config.alpha >= 0 else model.alpha,
            value=config.keep_ratio if config.keep_ratio > 0 else model.keep_ratio,
        )

    def _pruner(self, budget: Budget) -> pruning.Pruner:
        offered = {
            "alpha": budget.alpha,
            "relevance_source": self.manifest.selection.relevance_source,
            "seed": self.config.seed,
        }
        taken = pruning.option_names(budget.method)
        pruner = pruning.load(budget.method, **{k: v for k, v in offered.items() if k in taken})
        if pruner.site != "post_encoder":
            raise ConfigError(
                f"{budget.method} prunes {pruner.site.replace('_', ' ')}; it runs on a Hugging Face"
                " model through edge_atp.hf.attach, not on an exported engine"
            )
        return pruner

    def _signals(
        self, vision: VisionOutput, question: str, needs: tuple[str, ...]
    ) -> VisualSignals:
        signals = VisualSignals(
            patch_features=vision.patch_features,
            cls_attention=vision.cls_attention,
            patch_embeds=vision.patch_embeds,
            patch_grid=self.grid,
        )
        # The rest costs a model call each: computed only for methods that ask.
        if "text_embed" in needs:
            signals = replace(signals, text_embed=self.engine.encode_text(question))
        if "image_embeds" in needs:
            every = np.arange(self.grid.num_patches, dtype=np.int64)
            projected = self.engine.project(vision.patch_features, every)
            signals = replace(signals, image_embeds=projected)
        if "text_tokens" in needs:
            signals = replace(signals, text_tokens=self.engine.embed_question(question))
        return signals

    def _prompt(
        self, query: Query, encodings: Sequence[Encoding], selections: Sequence[Selection]
    ) -> Prompt:
        images = [
            self._project(encoding, selection)
            for encoding, selection in zip(encodings, selections, strict=True)
        ]
        return self.engine.embed_prompt(query.text, images)

    def _project(self, encoding: Encoding, selection: Selection) -> NDArray[np.float32]:
        """(K, H) projected tokens: the kept patches, or what a merging method made of them."""
        if selection.merged is None:
            return self.engine.project(encoding.vision.patch_features, selection.kept_indices)
        every = np.arange(len(selection.merged), dtype=np.int64)
        return self.engine.project(np.asarray(selection.merged), every)

    def _generate(
        self,
        query: Query,
        prompt: Prompt,
        clock: StageClock,
        on_text: Callable[[str], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> Generation:
        def on_prefill() -> None:
            clock.lap("prefill")
            clock.first_token()

        return self.engine.generate(
            prompt,
            max_new_tokens=self._longest(query),
            on_prefill=on_prefill,
            on_token=on_text,
            should_stop=should_stop,
        )

    def _assemble(
        self,
        query: Query,
        budget: Budget,
        encodings: Sequence[Encoding],
        selections: Sequence[Selection],
        prompt: Prompt,
        generation: Generation,
        clock: StageClock,
    ) -> Answer:
        num_patches = self.grid.num_patches
        masks = tuple(
            PatchMask(
                frame=encoding.frame,
                grid=self.grid,
                region=encoding.region,
                kept=to_bool(np.asarray(selection.kept_indices), num_patches),
                scores=None if selection.scores is None else np.asarray(selection.scores),
            )
            for encoding, selection in zip(encodings, selections, strict=True)
        )
        return Answer(
            text=generation.text,
            query_id=query.query_id,
            status=_FINISH_STATUS[generation.finish],
            masks=masks,
            tokens=TokenCounts(
                visual_total=num_patches * len(masks),
                visual_kept=prompt.num_visual_tokens,
                prompt_text=prompt.num_text_tokens,
                generated=len(generation.token_ids),
            ),
            times=clock.times(),
            confidence=generation.mean_token_prob,
            method=budget.method,
            model_id=self.manifest.model_id,
            token_ids=generation.token_ids,
        )


def runnable_methods(manifest: Manifest) -> tuple[str, ...]:
    """Pruning methods that a model directory's graphs feed, sorted."""
    exposed = {"patch_grid", "image_embeds", "text_tokens"}
    exposed.update(output.name for output in manifest.graph("vision").outputs)
    if manifest.text_tower:
        exposed.add("text_embed")
    return tuple(name for name in pruning.available() if _is_fed(name, exposed))


def _is_fed(method: str, exposed: set[str]) -> bool:
    try:
        pruner = pruning.load(method)
    except ImportError:  # the method's own package is missing: nobody else's concern
        return False
    groups = [*((name,) for name in pruner.needs), *pruner.needs_one_of]
    return pruner.site == "post_encoder" and all(exposed.intersection(g) for g in groups)
