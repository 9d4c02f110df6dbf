"""Greedy decoding on a KV cache: prefill, then one token at a time.

Knows nothing of tokenisation of the prompt or of images; it sees embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import BudgetExceededError, InferenceError
from edge_atp.runtime.choices import score_sequences
from edge_atp.runtime.kv_cache import KvCache
from edge_atp.runtime.kv_prefix import HeldKv, ResumingPrefill
from edge_atp.runtime.outputs import Prompt


@dataclass(frozen=True)
class DecodedTokens:
    """Generated ids without the end token, each with its probability; why generation ended."""

    token_ids: tuple[int, ...]
    probabilities: tuple[float, ...]
    finish: str


class GreedyDecoder:
    """Runs one decoder graph. One generation at a time.

    Args:
        kv_cache: the decoder graph with its cache.
        embed_tokens: token ids to their (M, H) rows.
        eos_token_ids: each of them ends an answer.
        max_kv: positions the cache has.
    """

    def __init__(
        self,
        kv_cache: KvCache,
        embed_tokens: Callable[[list[int]], NDArray[np.float32]],
        eos_token_ids: tuple[int, ...],
        max_kv: int,
    ) -> None:
        self._kv_cache = kv_cache
        self._embed_tokens = embed_tokens
        self._eos = frozenset(eos_token_ids)
        self._max_kv = max_kv
        self._prefiller = ResumingPrefill(kv_cache)

    @property
    def kv_bytes(self) -> int:
        """Memory the KV cache holds."""
        return self._kv_cache.num_bytes

    @property
    def reused_tokens(self) -> int:
        """Tokens of the last prompt whose keys and values were there already."""
        return self._prefiller.reused

    def last_logits(self, inputs_embeds: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (vocab,) after (S, H) embeddings; forgets what the cache held before."""
        return self._prefiller.enter(inputs_embeds)

    def hold(self, token_ids: Sequence[int]) -> HeldKv | None:
        """Copy out what the cache holds after a prompt and the tokens generated behind it."""
        return self._prefiller.hold(self._embed_tokens(list(token_ids)))

    def score(
        self,
        prompt: Prompt,
        answers: Sequence[tuple[int, ...]],
        *,
        negligible: float = 0.0,
        held: HeldKv | None = None,
        on_prefill: Callable[[], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> NDArray[np.float64] | None:
        """Log-probability of each answer (token ids, end token last) behind a prompt.

        Args:
            negligible, should_stop: see ``choices.score_sequences``.
            held: keys and values the prompt may begin with.
            on_prefill: called when the logits of the prompt are there.
        Returns:
            (C,), or None when stopped.
        Raises:
            BudgetExceededError: the longest answer does not fit behind the prompt.
        """
        # The last token of an answer needs no slot in the cache.
        logits = self._prefill(prompt, max(map(len, answers)) - 1, held)
        if on_prefill:
            on_prefill()
        return score_sequences(
            self._kv_cache,
            self._embed_tokens,
            logits,
            answers,
            negligible=negligible,
            should_stop=should_stop,
        )

    def generate(
        self,
        prompt: Prompt,
        max_new_tokens: int,
        *,
        held: HeldKv | None = None,
        on_prefill: Callable[[], None] | None = None,
        on_tokens: Callable[[list[int]], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> DecodedTokens:
        """Prefill a prompt and decode greedily; ties go to the lowest token id.

        Args:
            held: keys and values the prompt may begin with.
            on_prefill: called when the first logits are there.
            on_tokens: called with all ids so far after each new one.
            should_stop: asked before each step; true ends generation with "stopped".
        Raises:
            BudgetExceededError: the prompt leaves no room in the KV cache.
            InferenceError: the backend failed, or the logits are not finite.
        """
        logits = self._prefill(prompt, 1, held)
        if on_prefill:
            on_prefill()
        # The last token needs no slot in the cache: it is never fed back.
        budget = min(max_new_tokens, self._max_kv - prompt.next_position + 1)
        token_ids: list[int] = []
        probabilities: list[float] = []
        while True:
            if should_stop and should_stop():
                return DecodedTokens(tuple(token_ids), tuple(probabilities), "stopped")
            token, probability = _most_likely(logits)
            if token in self._eos:
                return DecodedTokens(
                    tuple(token_ids), tuple(probabilities) or (probability,), "eos"
                )
            token_ids.append(token)
            probabilities.append(probability)
            if on_tokens:
                on_tokens(token_ids)
            if len(token_ids) >= budget:
                return DecodedTokens(tuple(token_ids), tuple(probabilities), "length")
            logits = self._kv_cache.forward(self._embed_tokens([token]))

    def _prefill(self, prompt: Prompt, room: int, held: HeldKv | None) -> NDArray[np.float32]:
        # Position ids may run ahead of the rows; both end at max_kv.
        length = prompt.next_position
        if length + room > self._max_kv:
            raise BudgetExceededError(
                f"the prompt has {length} tokens; llm.max_kv is {self._max_kv} and must leave room"
                f" for {max(room, 1)} tokens of the answer. Keep fewer visual tokens or shorten"
                " the question"
            )
        return self._prefiller.enter(prompt.inputs_embeds, prompt.num_prefix, held)


def _most_likely(logits: NDArray[np.float32]) -> tuple[int, float]:
    """Token of the largest logit (lowest id on a tie) and its softmax probability."""
    token = int(np.argmax(logits))
    top = float(logits[token])
    if not np.isfinite(top):
        raise InferenceError(f"the decoder's largest logit is {top}; check the model's precision")
    return token, float(1.0 / np.exp(logits.astype(np.float64) - top).sum())
