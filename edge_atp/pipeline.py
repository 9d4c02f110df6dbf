"""Frame and question in, answer and kept-patch mask out: the only file that names every stage.

    preprocess -> encode -> score and select -> project -> prefill -> decode

Knows nothing of ROS, cameras or queues; one call at a time (the caller owns the thread).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_atp.answer_work import AnswerWork, Encoding
from edge_atp.budget import Budget, plan
from edge_atp.config import PipelineConfig
from edge_atp.conversations import Conversation, ConversationStore, without_oldest
from edge_atp.cost_model import Work
from edge_atp.cutting import CuttingStages, in_model
from edge_atp.early_cut import check_cut, layer_cuts, on_whole_grid, rows_of
from edge_atp.errors import BudgetExceededError, ConfigError, InvalidQueryError
from edge_atp.frame_reuse import FrameMemory
from edge_atp.interruption import Interruption
from edge_atp.latency_budget import LatencyBudget, find_latency_budget
from edge_atp.methods import Methods
from edge_atp.preprocess import Preprocessor
from edge_atp.pruning import Pruner
from edge_atp.query_check import check_query
from edge_atp.responding import FINISHED, choose, generate
from edge_atp.runtime.cut_encoder import CutEncoder, split_method
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.in_model import cuts_encoder
from edge_atp.runtime.loading import load_engine
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.runtime.outputs import OPTIONAL_VISION_OUTPUTS, Prompt
from edge_atp.runtime.prompt import Turn
from edge_atp.runtime.running import running
from edge_atp.signals import optional_outputs, read_signals, runnable_methods
from edge_atp.timing import StageClock
from edge_atp.types import (
    Answer,
    Array,
    Frame,
    PatchGrid,
    Policy,
    PruneSpec,
    Query,
    Selection,
)

__all__ = ["Encoding", "Pipeline", "runnable_methods"]


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
        self.conversations = ConversationStore(
            config.max_conversations, config.conversation_age, config.conversation_memory_mb << 20
        )
        self._methods = Methods(manifest, config.seed)
        self._cutting = CuttingStages(engine, self.preprocess, self.grid)
        self._cut_encoder = CutEncoder(engine.open_graph, manifest)
        self._frames: FrameMemory[Encoding] = FrameMemory(config.frame_tolerance)
        self._pruner(self.default_budget)  # an unknown default is an error now, not per question

    @classmethod
    def load(cls, config: PipelineConfig | None = None) -> Pipeline:
        """Open the model directory (every hash checked) and start the backend.

        Raises:
            ArtifactError, BackendUnavailableError, ConfigError.
        """
        config = config or PipelineConfig()
        engine = load_engine(config.model, config.engine, num_threads=config.num_threads)
        return cls(engine, engine.directory, config)

    def answer(
        self,
        query: Query,
        frames: Sequence[Frame | Encoding],
        *,
        accepted_s: float | None = None,
        frame_age_s: float = 0.0,
        deadline_s: float | None = None,
        on_text: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Answer:
        """Answer one question about one or several frames.

        Args:
            query: the question.
            frames: in the order in which the model sees them; encodings from ``encode`` to share
                one encoding between several questions. Empty to ask on about the newest images of
                a conversation.
            accepted_s: ``time.perf_counter()`` when the question was accepted.
            frame_age_s: age of the newest frame when work began.
            deadline_s: ``time.perf_counter()`` from which on the answer is of no use.
            on_text: called with the text so far after each token, or with the chosen answer.
            should_stop: the caller no longer wants the answer.
        Returns:
            An answer; EXPIRED or CANCELED, with the text so far, once the deadline has passed or
            ``should_stop`` holds. Both are asked before each stage and between tokens.
        Raises:
            EdgeAtpError: see ``edge_atp.errors``.
        """
        self.check(query, num_frames=len(frames))
        work = AnswerWork(
            query,
            frames,
            StageClock(accepted_s, frame_age_s),
            Interruption(should_stop, deadline_s),
            self._budgets(query, len(frames)),
            self.conversations.get(query.conversation_id),
        )
        work.cut = in_model(self._pruner(work.budgets[0]))
        for frame in frames:
            if not work.stop():
                self._encode(work, frame)
        if not work.stop():
            self._select(work)
        if not work.stop():
            self._decode(work, on_text)
        self._remember(work)
        answer = work.answer(self.grid, self.manifest.model_id, self.engine.reused_tokens)
        if query.conversation_id:  # a turn behind others is no work that the cost model knows
            return answer
        return self.latency.compare(query, answer, self._longest(query), work.num_encoded)

    def check(self, query: Query, num_frames: int = 1) -> None:
        """Refuse a question that cannot be answered, before any work is spent on it.

        Raises:
            InvalidQueryError: text, choices, number of images or pruning request are not what
                they must be, or there is no frame and no conversation to ask on about.
        """
        check_query(query, num_frames, self.config)
        if num_frames == 0 and not self.conversations.frames(query.conversation_id):
            known = (
                f"; conversation {query.conversation_id!r} is not remembered, send a frame"
                if query.conversation_id
                else ""
            )
            raise InvalidQueryError(f"no frame to answer about{known}")
        if query.choices:
            self.engine.check_choices(query.choices)
        for budget in self._budgets(query, num_frames):
            try:
                pruner = self._pruner(budget)
                if (method := in_model(pruner)) is not None:
                    self._cutting.check(method, query, budget)
                if _is_cut(budget):
                    check_cut(self._cut_encoder, budget, self.grid.num_patches)
            except ConfigError as error:
                raise InvalidQueryError(f"prune.method: {error}") from error

    def encode(
        self,
        frame: Frame,
        clock: StageClock | None = None,
        optional: Collection[str] = OPTIONAL_VISION_OUTPUTS,
        *,
        cut: bool = False,
    ) -> Encoding:
        """Preprocess and run the vision encoder on one frame, unless it is an unchanged one.

        Args:
            optional: which of the outputs that few methods read to fetch; all of them by default,
                so that the encoding serves every method.
            cut: with the encoder that drops patches on its way, for methods "cut+NAME".
        """
        clock = clock or StageClock()
        last = self._frames.recall(frame)
        if last is not None and self._serves(last, optional, cut):
            clock.lap("preprocess")
            return replace(last, frame=frame, reused=True)
        pixel_values, region = self.preprocess(frame.image)
        clock.lap("preprocess")
        if cut:
            vision = self._cut_encoder.encode(pixel_values)
        else:
            vision = self.engine.encode_image(pixel_values, optional)
        encoding = Encoding(frame, region, vision)
        self._frames.remember(frame, encoding)
        clock.lap("vision_encode")
        return encoding

    def wants_cut(self, query: Query, num_images: int) -> list[bool]:
        """Which of the question's images go through the encoder that drops patches on its way.

        That is ``cut`` of ``encode``; another encoding is made anew for the question.
        Raises:
            InvalidQueryError: see ``check``.
        """
        return [_is_cut(budget) for budget in self._budgets(query, num_images)]

    def select(self, encoding: Encoding, question: str, budget: Budget) -> Selection:
        """Score the patches of one frame against the question and choose those that stay."""
        pruner, vision = self._pruner(budget), encoding.vision
        signals = read_signals(self.engine, vision, question, self.grid, pruner)
        num_patches = self.grid.num_patches
        scores: Array | None = None
        if budget.policy is Policy.SCORE_MASS:
            scores = pruner.select(signals, len(vision.patch_features)).scores
        selection = pruner.select(signals, budget.num_kept(num_patches, scores))
        return on_whole_grid(selection, vision.place, num_patches)

    def close(self) -> None:
        """Release the backend's memory and forget frames and conversations."""
        self._cutting.close()
        self._cut_encoder.close()
        self.engine.close()
        self.conversations.clear()
        self._frames.clear()

    def _budgets(self, query: Query, num_images: int) -> list[Budget]:
        """Settle how many tokens each image keeps; one entry also where there is none."""
        specs = query.prune_per_image or (query.prune,) * max(1, num_images)
        return [self._plan(query, spec, num_images) for spec in specs]

    def _plan(self, query: Query, spec: PruneSpec, num_images: int) -> Budget:
        """Settle one image's budget; a latency budget becomes a number of tokens."""
        if spec.policy is Policy.NODE_DEFAULT and self.config.latency_budget_ms > 0:
            seconds = self.config.latency_budget_ms / 1e3
            spec = replace(spec, policy=Policy.LATENCY_BUDGET, latency_budget_s=seconds)

        def fits(seconds: float, method: str) -> int:
            text = len(self.engine.prompt_tokens(query.text, num_images).ids) - num_images
            work = Work(0, text, self._longest(query), num_images, num_images)
            fitting = self.latency.num_kept(seconds, query.text, work, method)
            return min(fitting, self._cut_encoder.num_left) if split_method(method)[0] else fitting

        return plan(spec, self.default_budget, fits)

    def _serves(self, encoding: Encoding, optional: Collection[str], cut: bool) -> bool:
        """Whether an encoding is of the encoder asked for, with those outputs that it has."""
        if cut or encoding.vision.place is not None:
            return cut and encoding.vision.place is not None
        outputs = {output.name for output in self.manifest.graph("vision").outputs}
        return encoding.vision.has(name for name in optional if name in outputs)

    def _longest(self, query: Query) -> int:
        return query.max_new_tokens or self.config.max_new_tokens

    def _encode(self, work: AnswerWork, frame: Frame | Encoding) -> None:
        if work.cut and cuts_encoder(work.cut):
            budget = work.budgets[len(work.encodings)]
            encoding = self._cutting.encode(work, frame, budget)
        else:
            encoding = self._encode_whole(work, frame)
        work.num_encoded += encoding is not frame and not encoding.reused
        work.encodings.append(encoding)

    def _encode_whole(self, work: AnswerWork, frame: Frame | Encoding) -> Encoding:
        """The frame's encoding with what the methods of the question read."""
        optional: set[str] = set()
        for budget in work.budgets:
            optional.update(optional_outputs(self._pruner(budget), self.manifest.vision))
        cut = _is_cut(work.budgets[len(work.encodings)])
        if isinstance(frame, Encoding):
            if self._serves(frame, optional, cut):
                return frame
            # It was encoded for a method that reads less, or by the other encoder.
            again = self.encode(frame.shown(), work.clock, optional, cut=cut)
            return replace(again, frame=frame.frame, region=frame.region)
        return self.encode(frame, work.clock, optional, cut=cut)

    def _select(self, work: AnswerWork) -> None:
        if work.cut:
            work.selections = self._cutting.select(work)
            work.clock.lap("prune")
            return
        question = work.query.text
        reads_text = "text_embed" in self._pruner(work.budgets[0]).needs
        work.text_known = reads_text and self.engine.remembers_text(question)
        if num_cut := sum(encoding.vision.place is not None for encoding in work.encodings):
            work.cuts = layer_cuts(self._cut_encoder, num_cut)
        work.selections = [
            self.select(encoding, question, budget)
            for encoding, budget in zip(work.encodings, work.budgets, strict=False)
        ]
        work.clock.lap("prune")

    def _decode(self, work: AnswerWork, on_text: Callable[[str], None] | None) -> None:
        """Project, put the prompt together, prefill, and generate or choose the answer."""
        work.images = self._cutting.project(work) or [
            self._project(encoding, selection)
            for encoding, selection in zip(work.encodings, work.selections, strict=True)
        ]
        prompt, work.turns = self._prompt(work)
        work.prompt = self._cutting.prepare(work, prompt) if work.cut else prompt
        if work.query.choices:
            work.response = choose(self.engine, work, work.prompt, on_text)
        else:
            longest = self._longest(work.query)
            work.response = generate(self.engine, work, work.prompt, longest, on_text)
        work.kv_bytes = self.engine.kv_held_bytes
        if work.cut:
            self._cutting.finish(work)
        work.clock.lap("decode")

    def _default_budget(self) -> Budget:
        model = self.manifest.selection
        config = self.config
        return Budget(
            policy=Policy.KEEP_RATIO,
            method=config.method or model.method,
            alpha=config.alpha if config.alpha >= 0 else model.alpha,
            value=config.keep_ratio if config.keep_ratio > 0 else model.keep_ratio,
        )

    def _pruner(self, budget: Budget) -> Pruner:
        return self._methods.of(budget)

    def _project(self, encoding: Encoding, selection: Selection) -> NDArray[np.float32]:
        """(K, H) projected tokens: the kept patches, or what a merging method made of them."""
        vision = encoding.vision
        if selection.merged is None:
            rows = rows_of(selection.kept_indices, vision.place)
            return self.engine.project(vision.patch_features, rows)
        every = np.arange(len(selection.merged), dtype=np.int64)
        return self.engine.project(np.asarray(selection.merged), every)

    def _prompt(self, work: AnswerWork) -> tuple[Prompt, tuple[Turn, ...]]:
        """The prompt and the turns it holds: the oldest go where they do not all fit."""
        turns = work.conversation.turns
        new_images, limits = bool(work.images), self.config
        while True:
            fewer = without_oldest(turns, new_images)
            images = len(work.images) + sum(len(turn.images) for turn in turns)
            if fewer is None or (len(turns) < limits.max_turns and images <= limits.max_images):
                try:
                    prompt = self.engine.embed_prompt(
                        work.query.text, work.images, turns, keep_prefix=limits.reuse_prefix
                    )
                    left = self.manifest.llm.max_kv - len(prompt.inputs_embeds)
                    if fewer is None or left >= self._longest(work.query):
                        return prompt, turns
                except BudgetExceededError:
                    if fewer is None:
                        raise
            turns = fewer

    def _remember(self, work: AnswerWork) -> None:
        """Keep a completed turn of a conversation, with the keys and values it left."""
        done = work.response.status in FINISHED.values() and work.prompt is not None
        if not work.query.conversation_id or not done:
            return
        said = Turn(work.query.text, tuple(work.images), work.response.token_ids)
        self.conversations.put(
            work.query.conversation_id,
            Conversation(
                (*work.turns, said),
                work.masks(self.grid),
                self.engine.hold(work.response.token_ids),
                work.conversation.num_turns + 1,
            ),
        )


def _is_cut(budget: Budget) -> bool:
    return split_method(budget.method)[0]
