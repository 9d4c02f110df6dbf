"""Which question belongs to which image of a vision call, and its embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from edge_atp.errors import ConfigError, InvalidQueryError
from edge_atp.hf.family import ImageLayout, Module, Tensor
from edge_atp.hf.hooks.signals import QuestionSignals
from edge_atp.hf.text.question import question_from_ids
from edge_atp.hf.text.tower import TextTower


class Questions:
    """The questions of the running call: given explicitly, or read from the prompts.

    samples: for each image of the last lookup, the prompt (batch row) it belongs to.
    """

    def __init__(
        self,
        tokenizer: Any,
        placeholder_ids: Mapping[str, int],
        embeddings: Module,
        text_tower: TextTower | None,
        needs: frozenset[str],
    ) -> None:
        """
        Args:
            tokenizer: the processor's tokenizer.
            placeholder_ids: token id of each modality's placeholder.
            embeddings: the language model's input embedding.
            text_tower: embeds questions in CLIP's joint space, None when no method asks for it.
            needs: which of text_embed, clip_text_tokens and text_tokens to compute.
        """
        self._tokenizer = tokenizer
        self._placeholders = placeholder_ids
        self._embeddings = embeddings
        self._tower = text_tower
        self._needs = needs
        self._ids: Tensor | None = None
        self._given: list[str] | None = None
        self.samples: list[int] = []

    def set_prompt(self, ids: Tensor | None) -> None:
        """Token ids (B, n) of the prompts that the next vision call belongs to."""
        self._ids = ids

    def set_given(self, questions: str | Sequence[str] | None) -> None:
        """Questions to use instead of the prompts' text: one for all, or one per prompt."""
        if questions is None:
            self._given = None
        else:
            self._given = [questions] if isinstance(questions, str) else list(questions)

    @contextmanager
    def given(self, questions: str | Sequence[str] | None) -> Iterator[None]:
        """Use these questions for a while; None changes nothing."""
        before = self._given
        if questions is not None:
            self.set_given(questions)
        try:
            yield
        finally:
            self._given = before

    def lookup(self, modality: str, layouts: Sequence[ImageLayout]) -> list[QuestionSignals]:
        """The question of each image of a vision call.

        Raises:
            InvalidQueryError: a method needs the question and there is none, or an empty one.
        """
        self.notice(modality, layouts)
        if not self._needs:
            return [QuestionSignals()] * len(layouts)
        cache: dict[str, QuestionSignals] = {}
        texts = [self.text(sample) for sample in self.samples]
        for text in set(texts):
            with torch.no_grad():
                cache[text] = self._embed(text)
        return [cache[text] for text in texts]

    def notice(self, modality: str, layouts: Sequence[ImageLayout]) -> None:
        """Note which prompt each image of a vision call belongs to.

        Raises:
            ConfigError: prompts and images disagree on the number of placeholder tokens.
        """
        self.samples = self._sample_of_each(modality, layouts)

    def text(self, sample: int) -> str:
        """The question of one prompt.

        Raises:
            InvalidQueryError: there is none.
        """
        if self._given is not None:
            if len(self._given) > 1 and sample >= len(self._given):
                raise InvalidQueryError(
                    f"{len(self._given)} questions were given, prompt {sample} has none; give one"
                    " for all or one per prompt"
                )
            return self._given[sample if len(self._given) > 1 else 0]
        if self._ids is None:
            raise InvalidQueryError(
                "the pruning method needs the question, but the prompt's input_ids are not known"
                " here; pass question=... to generate, or call handle.set_question"
            )
        row = self._ids[sample].tolist()
        text = question_from_ids(row, self._tokenizer, self._placeholders.values())
        if not text:
            raise InvalidQueryError(
                f"prompt {sample} holds no question text besides its template; pass question=..."
            )
        return text

    def _num_prompts(self, images: int) -> int:
        """Prompts of a call without placeholders; one per image when nothing tells."""
        return images if self._ids is None else len(self._ids)

    @property
    def count(self) -> int:
        """Number of prompts of the running call."""
        if self._ids is not None:
            return len(self._ids)
        return max(self.samples, default=0) + 1

    def tokens(self, text: str) -> tuple[Tensor, list[tuple[int, int]]]:
        """Language-model input embeddings (M, H) of a text, and each token's characters."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = [(int(start), int(end)) for start, end in encoded["offset_mapping"]]
        ids = torch.tensor(encoded["input_ids"], device=self._embeddings.weight.device)
        return self._embeddings(ids), spans

    def _sample_of_each(self, modality: str, layouts: Sequence[ImageLayout]) -> list[int]:
        """Images fill placeholders in prompt order: find the prompt each one starts in."""
        if not any(layout.num_placeholders for layout in layouts):
            prompts = self._num_prompts(len(layouts))
            return [image * prompts // len(layouts) for image in range(len(layouts))]
        if self._ids is None:
            return [0] * len(layouts)
        counts = (self._ids == self._placeholders[modality]).sum(1)
        ends = counts.cumsum(0)
        needed = sum(layout.num_placeholders for layout in layouts)
        if int(ends[-1]) != needed:
            raise ConfigError(
                f"the prompts hold {int(ends[-1])} {modality} placeholder tokens, the {modality}s"
                f" give {needed}; expand the prompt with the model's processor"
            )
        starts, position = [], 0
        for layout in layouts:
            starts.append(position)
            position += layout.num_placeholders
        found = torch.searchsorted(ends, torch.tensor(starts, device=ends.device), right=True)
        return [int(sample) for sample in found]

    def _embed(self, text: str) -> QuestionSignals:
        embed = clip_tokens = text_tokens = None
        if self._needs & {"text_embed", "clip_text_tokens"} and self._tower is not None:
            encoding = self._tower.encode(text)
            embed, clip_tokens = encoding.embed, encoding.tokens
        if "text_tokens" in self._needs:
            text_tokens, _ = self.tokens(text)
        return QuestionSignals(embed, clip_tokens, text_tokens)
