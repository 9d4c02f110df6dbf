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


@dataclass(frozen=True)
class DecodedTokens:
    """Generated ids without the end token, each with its probability; why generation ended."""

    token_ids: tuple[int, ...]
    probabilities: tuple[float, ...]
    finish: str


class GreedyDecoder:
    """Runs one decoder graph. One generation at a time."""

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

    @property
    def kv_bytes(self) -> int:
        """Memory the KV cache holds."""
        return self._kv_cache.num_bytes

    def last_logits(self, inputs_embeds: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (vocab,) after (S, H) embeddings; forgets what the cache held before."""
        self._kv_cache.truncate(0)
        return self._kv_cache.forward(inputs_embeds)

    def score(
        self,
        inputs_embeds: NDArray[np.float32],
        answers: Sequence[tuple[int, ...]],
        on_prefill: Callable[[], None] | None = None,
    ) -> NDArray[np.float64]:
        """Log-probability of each answer (token ids, end token last) after (S, H) embeddings.

        Raises:
            BudgetExceededError: the longest answer does not fit behind the prompt.
        """
        # The last token of an answer needs no slot in the cache.
        logits = self._prefill(inputs_embeds, max(map(len, answers)) - 1)
        if on_prefill:
            on_prefill()
        return score_sequences(self._kv_cache, self._embed_tokens, logits, answers)

    def _prefill(self, inputs_embeds: NDArray[np.float32], room: int) -> NDArray[np.float32]:
        length = int(inputs_embeds.shape[0])
        if length + room > self._max_kv:
            raise BudgetExceededError(
                f"the prompt has {length} tokens; llm.max_kv is {self._max_kv} and must leave room"
                f" for {max(room, 1)} tokens of the answer. Keep fewer visual tokens or shorten"
                " the question"
            )
        self._kv_cache.truncate(0)
        return self._kv_cache.forward(inputs_embeds)

    def generate(
        self,
        inputs_embeds: NDArray[np.float32],
        max_new_tokens: int,
        *,
        on_prefill: Callable[[], None] | None = None,
        on_tokens: Callable[[list[int]], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> DecodedTokens:
        """Prefill (S, H) embeddings and decode greedily; ties go to the lowest token id.

        Args:
            on_prefill: called when the first logits are there.
            on_tokens: called with all ids so far after each new one.
            should_stop: asked before each step; true ends generation with "stopped".
        Raises:
            BudgetExceededError: the prompt leaves no room in the KV cache.
            InferenceError: the backend failed, or the logits are not finite.
        """
        length = int(inputs_embeds.shape[0])
        logits = self._prefill(inputs_embeds, 1)
        if on_prefill:
            on_prefill()
        # The last token needs no slot in the cache: it is never fed back.
        budget = min(max_new_tokens, self._max_kv - length + 1)
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


def _most_likely(logits: NDArray[np.float32]) -> tuple[int, float]:
    """Token of the largest logit (lowest id on a tie) and its softmax probability."""
    token = int(np.argmax(logits))
    top = float(logits[token])
    if not np.isfinite(top):
        raise InferenceError(f"the decoder's largest logit is {top}; check the model's precision")
    return token, float(1.0 / np.exp(logits.astype(np.float64) - top).sum())
