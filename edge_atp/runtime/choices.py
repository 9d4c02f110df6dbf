"""Closed answer sets: how probable is each answer, by the model itself.

An answer's probability is that of all its tokens and of the end of the answer behind them, so
"shelf" and "shelf two" compete fairly and the probabilities of different answers are those of
disjoint events. Answers that begin alike share the computation of what they share.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_atp.runtime.kv_cache import KvCache
from edge_atp.runtime.outputs import Float

EmbedTokens = Callable[[list[int]], Float]


@dataclass(frozen=True)
class ChoiceScores:
    """Probabilities of a closed answer set.

    choices: as asked.
    token_ids: of each answer, without the end token.
    log_probs: (C,) natural log of each answer's probability under the model.
    probabilities: (C,) the same, normalised over the set; sums to 1.
    """

    choices: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    log_probs: NDArray[np.float64]
    probabilities: NDArray[np.float64]

    @property
    def best(self) -> int:
        """Index of the most probable answer; the first on a tie."""
        return int(np.argmax(self.log_probs))

    @property
    def coverage(self) -> float:
        """Share of all probability that the model gives to the set at all, [0, 1]."""
        return float(np.exp(self.log_probs).sum())


def score_sequences(
    kv_cache: KvCache,
    embed_tokens: EmbedTokens,
    prompt_logits: Float,
    sequences: Sequence[tuple[int, ...]],
    *,
    negligible: float = 0.0,
    should_stop: Callable[[], bool] | None = None,
) -> NDArray[np.float64] | None:
    """Log-probability of each token sequence behind the prompt that the cache holds.

    Args:
        prompt_logits: (vocab,) after the prompt.
        sequences: non-empty token ids each, the end token last.
        negligible: a sequence whose beginning is less probable than this share of the best whole
            one is not followed further; its score is then that of its beginning, an upper bound.
            The best one is exact. 0 follows all.
        should_stop: asked before each run of the decoder.
    Returns:
        (C,), or None when stopped; the cache is left as it was.
    """
    scores = np.zeros(len(sequences))
    margin = np.log(negligible) if negligible > 0 else -np.inf
    best = -np.inf

    def descend(logits: Float, members: list[int], depth: int) -> bool:
        nonlocal best
        log_probs = _log_softmax(logits)
        by_token: dict[int, list[int]] = defaultdict(list)
        for member in members:
            token = sequences[member][depth]
            scores[member] += log_probs[token]
            by_token[token].append(member)
        # The most probable beginning first: it sets the mark for the others.
        for token in sorted(by_token, key=lambda t: -float(log_probs[t])):
            longer = [m for m in by_token[token] if len(sequences[m]) > depth + 1]
            for ended in set(by_token[token]).difference(longer):
                best = max(best, scores[ended])
            if not longer or scores[longer[0]] < best + margin:
                continue
            if should_stop and should_stop():
                return False
            length = kv_cache.length
            finished = descend(kv_cache.forward(embed_tokens([token])), longer, depth + 1)
            kv_cache.truncate(length)
            if not finished:
                return False
        return True

    return scores if descend(prompt_logits, list(range(len(sequences))), 0) else None


def normalise(log_probs: NDArray[np.float64]) -> NDArray[np.float64]:
    """(C,) log-probabilities to probabilities that sum to 1."""
    shifted = np.exp(log_probs - log_probs.max())
    probabilities: NDArray[np.float64] = shifted / shifted.sum()
    return probabilities


def _log_softmax(logits: Float) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max()
    log_probs: NDArray[np.float64] = wide - np.log(np.exp(wide).sum())
    return log_probs
