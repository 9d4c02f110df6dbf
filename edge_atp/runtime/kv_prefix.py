"""Which rows of a prompt the KV cache already holds, so that only the rest is prefilled.

Rows are compared as numbers: what is reused is exactly what would be computed from the same input.
A prompt is entered in the same parts whether they are there already or not, so that an answer does
not depend on what was asked before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_atp.runtime.kv_cache import KvCache
from edge_atp.runtime.outputs import Float
from edge_atp.runtime.sessions.base import Arrays


@dataclass(frozen=True)
class HeldKv:
    """Keys and values kept outside the cache.

    rows: (L, H) the embeddings they were computed from.
    arrays: cache input -> (1, kv_heads, L, head_dim).
    num_prefix: leading rows that were entered by themselves.
    """

    rows: Float
    arrays: Arrays
    num_prefix: int = 0

    @property
    def num_bytes(self) -> int:
        """Memory of rows, keys and values."""
        return int(self.rows.nbytes) + sum(int(array.nbytes) for array in self.arrays.values())


class ResumingPrefill:
    """Enters prompts into a KV cache, behind what it can keep.

    Attributes:
        reused: rows of the last prompt that were not computed anew.
    """

    def __init__(self, kv_cache: KvCache) -> None:
        self._kv_cache = kv_cache
        self._rows: Float | None = None
        self._num_prefix = 0
        self.reused = 0

    def enter(self, rows: Float, num_prefix: int = 0, held: HeldKv | None = None) -> Float:
        """Prefill a prompt; returns the logits (vocab,) after it.

        Args:
            rows: (S, H) embeddings of the prompt, S >= 1.
            num_prefix: leading rows that many prompts begin with, kept between them; 0 for none.
            held: keys and values of an earlier prompt whose beginning this one may share.
        """
        self.reused = 0
        start = self._start(rows, num_prefix, held) if self._kv_cache.can_resume else 0
        # Until the run has succeeded nobody knows what the cache holds.
        self._rows = None
        self._kv_cache.truncate(start)
        logits = self._kv_cache.forward(rows[start:])
        self._rows = rows
        return logits

    def hold(self, generated: Float) -> HeldKv | None:
        """Copy out what the cache holds now; None where the cache cannot.

        Args:
            generated: (G, H) rows fed behind the prompt, in order; more than were fed is fine.
        """
        if self._rows is None or not self._kv_cache.can_resume:
            return None
        rows = np.concatenate([self._rows, generated])[: self._kv_cache.length]
        self._rows = rows
        return HeldKv(rows, self._kv_cache.copy_out(), self._num_prefix)

    def _start(self, rows: Float, num_prefix: int, held: HeldKv | None) -> int:
        """Make the cache hold the first rows; returns how many."""
        # The last row is always computed: its logits are wanted.
        open_rows = rows[:-1]
        num_prefix = min(num_prefix, len(open_rows)) if self._kv_cache.truncates_freely else 0
        resident = self._resident(open_rows)
        if held is not None and (shared := common_rows(held.rows, open_rows)) > num_prefix:
            if resident < shared:
                self._kv_cache.copy_in(held.arrays, shared)
            self._num_prefix = held.num_prefix
            self.reused = shared
            return shared
        # Rows that were entered among others may differ in the last bit.
        if resident >= num_prefix == self._num_prefix:
            self.reused = num_prefix
            return num_prefix
        self._rows, self._num_prefix = None, num_prefix
        self._kv_cache.truncate(0)
        if num_prefix:
            self._kv_cache.forward(rows[:num_prefix])
        return num_prefix

    def _resident(self, rows: Float) -> int:
        return 0 if self._rows is None else common_rows(self._rows, rows)


def common_rows(one: Float, other: Float) -> int:
    """Number of leading rows that are equal; (A, H) and (B, H)."""
    length = min(len(one), len(other))
    differs = (one[:length] != other[:length]).any(axis=1)
    return int(np.argmax(differs)) if differs.any() else length
