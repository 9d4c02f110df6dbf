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
    log_probs: (C,) natural log of each answer's probability under the model.
    probabilities: (C,) the same, normalised over the set; sums to 1.
    """

    choices: tuple[str, ...]
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
) -> NDArray[np.float64]:
    """Log-probability of each token sequence behind the prompt that the cache holds.

    Args:
        prompt_logits: (vocab,) after the prompt.
        sequences: non-empty token ids each, the end token last.
    Returns:
        (C,); the cache is left as it was.
    """
    scores = np.zeros(len(sequences))

    def descend(logits: Float, members: list[int], depth: int) -> None:
        log_probs = _log_softmax(logits)
        by_token: dict[int, list[int]] = defaultdict(list)
        for member in members:
            by_token[sequences[member][depth]].append(member)
        for token, following in by_token.items():
            scores[following] += log_probs[token]
            longer = [m for m in following if len(sequences[m]) > depth + 1]
            if longer:
                length = kv_cache.length
                descend(kv_cache.forward(embed_tokens([token])), longer, depth + 1)
                kv_cache.truncate(length)

    descend(prompt_logits, list(range(len(sequences))), 0)
    return scores


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
