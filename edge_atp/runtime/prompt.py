"""From questions and projected images to the language model's input rows.

A conversation is its turns one after the other: the first in the model's prompt template, the
others in its turn template, each answer closed by the end token, as models are trained on turns.
Knows nothing of graphs or of what the KV cache holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import BudgetExceededError
from edge_atp.runtime.outputs import Float, Prompt
from edge_atp.runtime.text import PromptTokenizer, PromptTokens

EmbedTokens = Callable[[NDArray[np.int64]], Float]


@dataclass(frozen=True)
class Turn:
    """A question that was answered.

    images: (K_i, H) tokens of each image that came with it.
    answer_ids: without the end token.
    """

    question: str
    images: tuple[Float, ...]
    answer_ids: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Memory of the images."""
        return sum(int(image.nbytes) for image in self.images)


class PromptBuilder:
    """Assembles prompts.

    Args:
        tokenizer: templates and tokenizer of the language model.
        embed_tokens: token ids to their (M, H) rows.
        max_kv: positions of the KV cache.
    """

    def __init__(self, tokenizer: PromptTokenizer, embed_tokens: EmbedTokens, max_kv: int) -> None:
        self._tokenizer = tokenizer
        self._embed_tokens = embed_tokens
        self._max_kv = max_kv

    def build(
        self,
        question: str,
        images: Sequence[Float],
        history: Sequence[Turn] = (),
        *,
        keep_prefix: bool = False,
    ) -> Prompt:
        """The input rows for a question behind the turns before it; see ``Engine.embed_prompt``."""
        tokens = self._tokens(question, len(images), history)
        every = [image for turn in history for image in turn.images] + list(images)
        parts: list[Float] = []
        start = 0
        counts = np.ones(len(tokens.ids), np.int64)
        for image, position in zip(every, np.flatnonzero(tokens.is_image), strict=True):
            parts += [self._embed_tokens(tokens.ids[start:position]), image]
            counts[position] = image.shape[0]
            start = int(position) + 1
        parts.append(self._embed_tokens(tokens.ids[start:]))
        embeds = np.concatenate(parts, axis=0)
        num_visual = sum(int(image.shape[0]) for image in every)
        if len(embeds) >= self._max_kv:
            raise BudgetExceededError(
                f"the prompt has {len(embeds)} tokens ({num_visual} visual); llm.max_kv is"
                f" {self._max_kv}. Keep fewer visual tokens or shorten the question"
            )
        return Prompt(
            embeds,
            len(embeds) - num_visual,
            num_visual,
            np.repeat(tokens.is_image, counts),
            int(np.argmax(tokens.is_image)) if keep_prefix and every else 0,
        )

    def _tokens(self, question: str, num_images: int, history: Sequence[Turn]) -> PromptTokens:
        parts: list[PromptTokens] = []
        for turn in history:
            parts.append(self._turn(turn.question, len(turn.images), bool(parts)))
            parts.append(self._tokenizer.closed_answer(turn.answer_ids))
        parts.append(self._turn(question, num_images, bool(parts)))
        return PromptTokens(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.is_image for part in parts]),
        )

    def _turn(self, question: str, num_images: int, follows: bool) -> PromptTokens:
        if follows:
            return self._tokenizer.encode_turn(question, num_images)
        return self._tokenizer.encode(question, num_images)
