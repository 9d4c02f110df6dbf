"""Frame and question in, answer and kept-patch mask out: the only file that names every stage.

    preprocess -> encode -> score and select -> project -> prefill -> decode

Knows nothing of ROS, cameras or queues; one call at a time (the caller owns the thread).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_atp.answer_work import AnswerWork
from edge_atp.budget import Budget, plan
from edge_atp.config import PipelineConfig
from edge_atp.conversations import Conversation, ConversationStore
from edge_atp.cost_model import Work
from edge_atp.cutting import CuttingStages, in_model
from edge_atp.early_cut import check_cut, layer_cuts, on_whole_grid, rows_of
from edge_atp.encoding import Encoding, FrameEncoder, VisionCut
from edge_atp.errors import ConfigError, InvalidQueryError
from edge_atp.interruption import Interruption
from edge_atp.latency_budget import LatencyBudget, find_latency_budget
from edge_atp.methods import Methods
from edge_atp.preprocess import Preprocessor
from edge_atp.pruning import Pruner
from edge_atp.query_check import check_query
from edge_atp.responding import FINISHED, choose, fit_prompt, generate
from edge_atp.runtime.cut_encoder import most_kept, split_method
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.loading import load_engine
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.runtime.outputs import OPTIONAL_VISION_OUTPUTS
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
        self._cutting = CuttingStages(engine, self.grid)
        self._encoder = FrameEncoder(engine, self.preprocess, config.frame_tolerance)
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
        clock = StageClock(accepted_s, frame_age_s)
        work = self._begin(query, frames, clock, Interruption(should_stop, deadline_s))
        self._encode(work)
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
                    check_cut(self.engine.cut_encoder, budget, self.grid.num_patches)
            except ConfigError as error:
                raise InvalidQueryError(f"prune.method: {error}") from error

    def encode(
        self,
        frame: Frame,
        clock: StageClock | None = None,
        optional: Collection[str] = OPTIONAL_VISION_OUTPUTS,
        *,
        cut: VisionCut | None = None,
    ) -> Encoding:
        """Preprocess and run a vision encoder on one frame, unless it is an unchanged one.

        Args:
            clock: told "preprocess", "vision_encode", and "prune" where a method cut between;
                "queue_wait" if graphs had to be opened.
            optional: which of the outputs that few methods read to fetch; all of them by default,
                so that the encoding serves every method that chooses behind the whole encoder.
            cut: what drops patches on the way, as ``wants_cut`` says; by default nothing does.
        """
        return self._encoder.encode(frame, clock or StageClock(), optional, cut)

    def wants_cut(self, query: Query, num_images: int) -> list[VisionCut | None]:
        """What is to drop patches of each of the question's images inside the vision encoder.

        That is ``cut`` of ``encode``: an encoding of any other kind is made anew for the question.
        Raises:
            ConfigError: the method is unknown or does not run on this model.
            InvalidQueryError: its budget does not go with it.
        """
        return self._methods.wanted_cuts(self._budgets(query, num_images))

    def open_graphs(
        self, cuts: Iterable[VisionCut | None], should_stop: Callable[[], bool] | None = None
    ) -> None:
        """Open the graphs that these cuts need and few others do, unless they are open.

        ``encode`` and ``answer`` do so by themselves; this is for who must be seen to be alive.
        Args:
            cuts: as ``wants_cut`` says.
            should_stop: asked before each graph; once true, the rest is left for later.
        Raises:
            ArtifactError: a graph is missing or damaged.
        """
        for cut in dict.fromkeys(cuts):
            self._encoder.open(cut, should_stop)

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

    def visual_tokens(self, query: Query, frames: Sequence[Frame]) -> list[NDArray[np.float32]]:
        """(K_i, H) the language model's tokens of each image, as ``answer`` puts them in a prompt.

        Raises:
            InvalidQueryError: see ``check``; or the method chooses inside the language model, so
                that there is no such set of tokens.
        """
        self.check(query, num_frames=len(frames))
        work = self._begin(query, frames, StageClock(), Interruption())
        if work.cut and work.cut.site == "in_llm":
            raise InvalidQueryError(
                f"prune.method: {work.cut.name} drops tokens inside the language model, not before"
                " it; choose a method that chooses before, such as atp"
            )
        self._encode(work)
        self._select(work)
        return self._project(work)

    def close(self) -> None:
        """Release the backend's memory and forget frames and conversations."""
        self.engine.close()
        self.conversations.clear()
        self._encoder.forget()

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
            return min(fitting, most_kept(method, self.manifest))

        return plan(spec, self.default_budget, fits)

    def _longest(self, query: Query) -> int:
        return query.max_new_tokens or self.config.max_new_tokens

    def _begin(
        self,
        query: Query,
        frames: Sequence[Frame | Encoding],
        clock: StageClock,
        stop: Interruption,
    ) -> AnswerWork:
        """The question with its budgets settled, and the conversation it goes on with."""
        budgets = self._budgets(query, len(frames))
        earlier = self.conversations.get(query.conversation_id)
        cut = self._methods.in_model(budgets)
        return AnswerWork(query, frames, clock, stop, budgets, earlier, cut=cut)

    def _encode(self, work: AnswerWork) -> None:
        """Each frame's encoding, with what the methods of the question read."""
        optional: set[str] = set()
        for budget in work.budgets:
            optional.update(optional_outputs(self._pruner(budget), self.manifest.vision))
        # Of a question that goes on about earlier images, no frame takes the one budget.
        for frame, cut in zip(work.frames, self._methods.wanted_cuts(work.budgets), strict=False):
            if work.stop():
                return
            if isinstance(frame, Encoding):
                encoding = self._encoder.encode_again(frame, work.clock, optional, cut)
            else:
                encoding = self._encoder.encode(frame, work.clock, optional, cut)
            work.num_encoded += encoding is not frame and not encoding.reused
            work.encodings.append(encoding)

    def _select(self, work: AnswerWork) -> None:
        if work.cut:
            work.selections = self._cutting.select(work)
            work.clock.lap("prune")
            return
        question = work.query.text
        reads_text = any("text_embed" in self._pruner(b).needs for b in work.budgets)
        work.text_known = reads_text and self.engine.remembers_text(question)
        if num_cut := sum(encoding.vision.place is not None for encoding in work.encodings):
            work.cuts = layer_cuts(self.engine.cut_encoder, num_cut)
        work.selections = [
            self.select(encoding, question, budget)
            for encoding, budget in zip(work.encodings, work.budgets, strict=False)
        ]
        work.clock.lap("prune")

    def _decode(self, work: AnswerWork, on_text: Callable[[str], None] | None) -> None:
        """Project, put the prompt together, prefill, and generate or choose the answer."""
        work.images = self._project(work)
        longest = self._longest(work.query)
        prompt, work.turns = fit_prompt(self.engine, work, self.config, longest)
        work.prompt = self._cutting.prepare(work, prompt) if work.cut else prompt
        if work.query.choices:
            work.response = choose(self.engine, work, work.prompt, on_text)
        else:
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

    def _project(self, work: AnswerWork) -> list[NDArray[np.float32]]:
        """(K_i, H) projected tokens: the kept patches, or what a merging method made of them."""
        if work.pruned:
            return self._cutting.project(work)
        tokens = []
        for encoding, selection in zip(work.encodings, work.selections, strict=True):
            vision = encoding.vision
            if selection.merged is None:
                rows = rows_of(selection.kept_indices, vision.place)
                tokens.append(self.engine.project(vision.patch_features, rows))
            else:
                every = np.arange(len(selection.merged), dtype=np.int64)
                tokens.append(self.engine.project(np.asarray(selection.merged), every))
        return tokens

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
