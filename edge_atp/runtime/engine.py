"""One model directory, loaded and ready: image, text and prompt in, tokens out. No torch.

Each method runs one stage; ``edge_atp.pipeline`` puts them in order. Selection is not here: it
happens on the host between ``encode_image`` and ``project``. An engine serves one caller at a
time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import (
    ArtifactError,
    BudgetExceededError,
    MissingSignalError,
    ShapeError,
)
from edge_atp.pruning.base import InModelPruner
from edge_atp.runtime import sessions
from edge_atp.runtime.choices import ChoiceScores, normalise
from edge_atp.runtime.cut_encoder import CutEncoder
from edge_atp.runtime.decoder import GreedyDecoder
from edge_atp.runtime.embedding_table import EmbeddingTable
from edge_atp.runtime.graph_options import graph_options
from edge_atp.runtime.in_llm.decoder import BlockDecoder
from edge_atp.runtime.in_llm.planning import held_bytes, open_blocks, plan_cuts
from edge_atp.runtime.in_vit.encoder import GroupedEncoder
from edge_atp.runtime.kv_cache import KvCache, make_kv_cache
from edge_atp.runtime.kv_prefix import HeldKv
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.runtime.outputs import (
    OPTIONAL_VISION_OUTPUTS,
    Float,
    Generation,
    Prompt,
    VisionOutput,
)
from edge_atp.runtime.prompt import PromptBuilder, Turn
from edge_atp.runtime.sessions.base import Session, SessionOptions
from edge_atp.runtime.text import (
    IncrementalText,
    PromptTokenizer,
    PromptTokens,
    Span,
    load_tokenizer,
)
from edge_atp.runtime.text_encoder import TextEncoder, open_text_encoder


class Engine:
    """A loaded model. Make one with ``Engine.load``.

    Attributes:
        directory: the model directory.
        backend: what really runs, such as "ort-cpu".
        backend_reason: why that one.
        cut_encoder, grouped_encoder: the encoders that drop patches on the way; their graphs are
            opened with the first image that wants them.
    """

    def __init__(
        self, directory: ModelDirectory, backend: str, backend_reason: str, options: SessionOptions
    ) -> None:
        self.directory = directory
        self.backend = backend
        self.backend_reason = backend_reason
        self._options = options
        manifest = directory.manifest
        self._vision = self.open_graph("vision")
        self._project = self.open_graph("project")
        self._table = EmbeddingTable(directory)
        llm = manifest.llm
        self._prompt = PromptTokenizer(
            load_tokenizer(directory.file("tokenizer")),
            manifest.prompt,
            next(iter(llm.eos_token_ids), -1),
        )
        self._builder = PromptBuilder(self._prompt, self._table, llm.max_kv)
        self._texts, text = open_text_encoder(directory, self.open_graph)
        self._kv_cache, decoders = self._open_decoder()
        self._decoder = GreedyDecoder(self._kv_cache, self._table, llm.eos_token_ids, llm.max_kv)
        self._sessions = [s for s in (self._vision, self._project, text, *decoders) if s]
        self.cut_encoder = CutEncoder(self.open_graph, manifest)
        self.grouped_encoder = GroupedEncoder(self.open_graph, manifest.vision)

    @classmethod
    def load(
        cls,
        directory: ModelDirectory,
        backend: str = "auto",
        *,
        num_threads: int = 0,
    ) -> Engine:
        """Load every graph of a model directory.

        Args:
            directory: an opened (checked) model directory.
            backend: a backend's name, or "auto"; a named one never falls back to another.
            num_threads: threads per operator, 0 for the physical cores.
        Raises:
            ConfigError, BackendUnavailableError: the backend is unknown or cannot run here.
            ArtifactError: a graph or table is damaged.
        """
        name, reason = sessions.choose_for(directory.manifest, backend)
        return cls(directory, name, reason, SessionOptions(num_threads))

    @property
    def kv_bytes(self) -> int:
        """Memory of the KV cache."""
        return self._decoder.kv_bytes

    def encode_image(self, pixel_values: Float, optional: Collection[str] = ()) -> VisionOutput:
        """Encode one preprocessed image (1, 3, size, size) float32.

        Args:
            optional: those of ``OPTIONAL_VISION_OUTPUTS`` to fetch as well, where the graph has
                them.
        Raises:
            ShapeError: another shape, or values that are not finite.
        """
        size = self.directory.manifest.preprocess.size
        if pixel_values.shape != (1, 3, size, size):
            raise ShapeError(
                f"pixel_values is {pixel_values.shape}; this model takes (1, 3, {size}, {size})"
            )
        if not np.isfinite(pixel_values).all():
            raise ShapeError("pixel_values contains NaN or infinity; check the image")
        names = tuple(
            spec.name
            for spec in self.directory.manifest.graph("vision").outputs
            if spec.name in optional or spec.name not in OPTIONAL_VISION_OUTPUTS
        )
        out = self._vision.run({"pixel_values": pixel_values.astype(np.float32, copy=False)}, names)
        count = self.directory.manifest.vision.num_patches
        fetched = {name: array[0] for name, array in out.items()}
        return VisionOutput(**{"patch_embeds": np.zeros((count, 0), np.float32), **fetched})

    def encode_text(self, text: str) -> Float:
        """The text's embedding (P,) in the joint space; the last 256 texts are remembered.

        A text longer than the encoder's context is cut into windows of even length and their
        unit-length embeddings are averaged.
        Raises:
            MissingSignalError: the model directory has no text encoder.
        """
        return self._require_texts().encode(text)

    def remembers_text(self, text: str) -> bool:
        """Whether ``encode_text`` has this text's embedding without computing it."""
        return self._texts is not None and text in self._texts

    def forget_texts(self) -> None:
        """Empty the memory of text embeddings."""
        if self._texts is not None:
            self._texts.forget()

    def project(self, patch_features: Float, kept_indices: NDArray[np.int64]) -> Float:
        """Project the kept patches only: (N, D), (K,) -> (K, H).

        Raises:
            BudgetExceededError: more tokens than selection.keep_max.
        """
        keep_max = self.directory.manifest.selection.keep_max
        if not 1 <= len(kept_indices) <= keep_max:
            raise BudgetExceededError(
                f"{len(kept_indices)} visual tokens were kept; this model takes 1 to {keep_max}"
                " (selection.keep_max); lower the budget"
            )
        out = self._project.run(
            {
                "patch_features": np.ascontiguousarray(patch_features, np.float32)[None],
                "kept_indices": np.ascontiguousarray(kept_indices, np.int64),
            }
        )
        embeds: Float = out["image_embeds"][0]
        return embeds

    def embed_tokens(self, token_ids: Sequence[int] | NDArray[np.int64]) -> Float:
        """Input embeddings (M, H) float32 of token ids."""
        return self._table(token_ids)

    def encode_text_tokens(self, text: str) -> tuple[Float, list[Span]]:
        """(M', P) embeddings of a text's single tokens in the joint space, and their characters.

        Raises:
            MissingSignalError: the model directory has no text encoder that gives them.
        """
        return self._require_texts().encode_tokens(text)

    def embed_text_tokens(self, text: str) -> tuple[Float, list[Span]]:
        """(M, H) input embeddings of a text's tokens, without a prompt, and their characters."""
        ids, spans = self._prompt.encode_spans(text)
        return self.embed_tokens(ids), spans

    def embed_question(self, text: str) -> Float:
        """Input embeddings (M, H) of a text alone, without the prompt around it."""
        return self.embed_tokens(self._prompt.encode_text(text))

    def prompt_tokens(self, question: str, num_images: int) -> PromptTokens:
        """Token ids of the prompt, one image token per image; see ``embed_prompt``."""
        return self._prompt.encode(question, num_images)

    def embed_prompt(
        self,
        question: str,
        images: Sequence[Float],
        history: Sequence[Turn] = (),
        *,
        keep_prefix: bool = False,
    ) -> Prompt:
        """Build the language model's input from the question and each image's (K_i, H) tokens.

        Args:
            images: of this question, in the order of their places in the prompt.
            history: the turns of a conversation before this question, oldest first.
            keep_prefix: keep keys and values of the text before the first image in the cache.
        Raises:
            InvalidQueryError: an empty question or one with special tokens.
            BudgetExceededError: the text or the whole prompt is too long.
        """
        return self._builder.build(question, images, history, keep_prefix=keep_prefix)

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int,
        cut: InModelPruner | None = None,
        num_kept: int | None = None,
        held: HeldKv | None = None,
        on_lap: Callable[[str], object] | None = None,
        on_prefill: Callable[[], None] | None = None,
        on_token: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Generation:
        """Decode greedily.

        Args:
            max_new_tokens: at least 1; the end of the KV cache may come earlier.
            cut: a method that drops visual tokens inside the language model; needs a directory
                exported with --block-layers.
            num_kept: visual tokens that ``cut`` leaves in the end; None for its own ratios.
            held: keys and values of an earlier prompt that this one may begin with, from ``hold``.
            on_lap: with ``cut``, told "prefill" when layers have run and "prune" when they were
                scored.
            on_prefill: called when the logits of the prompt are there.
            on_token: called with the whole text so far when it has grown; never half a character.
            should_stop: asked before each step; true ends generation with finish "stopped".
        Raises:
            InferenceError: the backend failed.
            ConfigError: ``cut`` cannot run on this directory; says why.
        """
        plan_cuts(self._kv_cache, prompt, cut, num_kept, on_lap)
        text = IncrementalText(self._prompt)

        def on_tokens(token_ids: list[int]) -> None:
            if on_token and (shown := text.update(token_ids)) is not None:
                on_token(shown)

        tokens = self._decoder.generate(
            prompt,
            max_new_tokens,
            held=held,
            on_prefill=on_prefill,
            on_tokens=on_tokens if on_token else None,
            should_stop=should_stop,
        )
        return Generation(
            token_ids=tokens.token_ids,
            text=self._prompt.decode(list(tokens.token_ids)).strip(),
            mean_token_prob=float(np.mean(tokens.probabilities)) if tokens.probabilities else 0.0,
            finish=tokens.finish,
        )

    def score_choices(
        self,
        prompt: Prompt,
        choices: Sequence[str],
        *,
        negligible: float = 0.0,
        cut: InModelPruner | None = None,
        num_kept: int | None = None,
        held: HeldKv | None = None,
        on_lap: Callable[[str], object] | None = None,
        on_prefill: Callable[[], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> ChoiceScores | None:
        """Probability of each answer of a closed set.

        Args:
            choices: two or more different answers, as the model would write them.
            negligible: share of the best answer's probability below which another is not computed
                to its end but bounded from above; 0 computes all.
            cut, num_kept, held, on_lap, on_prefill, should_stop: as in ``generate``.
        Returns:
            None when stopped.
        Raises:
            InvalidQueryError: fewer than two choices, an empty one, one with a special token, or
                two alike.
            BudgetExceededError: the longest answer does not fit behind the prompt.
        """
        answers = self._prompt.encode_choices(choices)
        end = self.directory.manifest.llm.eos_token_ids[0]
        plan_cuts(self._kv_cache, prompt, cut, num_kept, on_lap)
        log_probs = self._decoder.score(
            prompt,
            [(*ids, end) for ids in answers],
            negligible=negligible,
            held=held,
            on_prefill=on_prefill,
            should_stop=should_stop,
        )
        if log_probs is None:
            return None
        return ChoiceScores(tuple(choices), tuple(answers), log_probs, normalise(log_probs))

    def check_choices(self, choices: Sequence[str]) -> None:
        """Refuse a bad closed answer set; see ``score_choices``."""
        self._prompt.encode_choices(choices)

    def hold(self, token_ids: Sequence[int]) -> HeldKv | None:
        """Keys and values of the last prompt and of ``token_ids`` generated behind it.

        Returns:
            None where the decoder cannot hand them out (exported with --block-layers).
        """
        return self._decoder.hold(token_ids)

    @property
    def reused_tokens(self) -> int:
        """Tokens of the last prompt whose keys and values were there already."""
        return self._decoder.reused_tokens

    @property
    def kv_held_bytes(self) -> int:
        """Memory of the positions that the KV cache really holds."""
        return held_bytes(self._kv_cache, self.directory.manifest)

    @property
    def kept_by_layer(self) -> dict[int, NDArray[np.int64]]:
        """Visual tokens (indices into the prompt's) left from each cut layer on, last prompt."""
        return dict(self._kv_cache.kept) if isinstance(self._kv_cache, BlockDecoder) else {}

    @property
    def visual_tokens_left(self) -> int:
        """Visual rows that the last layers held of the last prompt, recycled ones included."""
        return self._kv_cache.num_visual if isinstance(self._kv_cache, BlockDecoder) else 0

    def last_logits(self, inputs_embeds: Float) -> Float:
        """Logits (vocab,) after a prompt (S, H), for comparisons with another runtime."""
        return self._decoder.last_logits(inputs_embeds)

    def open_graph(self, role: str) -> Session:
        """Open one graph of the directory with this engine's backend.

        Raises:
            ArtifactError: the directory has no such graph, or it is damaged.
        """
        graph = self.directory.manifest.graph(role)
        options = graph_options(self._options, self.directory, graph)
        path = self.directory.file(role)
        if path != self.directory.path / graph.file:
            raise ArtifactError(f"manifest.json names two files for graph {role!r}; export again")
        return sessions.open_session(path, self.backend, options)

    def close(self) -> None:
        """Release the graphs; the engine cannot be used afterwards."""
        self.cut_encoder.close()
        self.grouped_encoder.close()
        for session in self._sessions:
            session.close()
        self.forget_texts()

    def _open_decoder(self) -> tuple[KvCache, list[Session]]:
        manifest = self.directory.manifest
        llm = manifest.llm
        if not llm.block_layers:
            decoder = self.open_graph("decoder")
            dialect = manifest.graph("decoder").dialect
            return make_kv_cache(dialect, decoder, llm), [decoder]
        return open_blocks(manifest, self.open_graph)

    def _require_texts(self) -> TextEncoder:
        if self._texts is None:
            raise MissingSignalError(
                f"{self.directory.path} has no text encoder; export with --text-tower, or use a"
                " pruning method that does not read the question"
            )
        return self._texts
