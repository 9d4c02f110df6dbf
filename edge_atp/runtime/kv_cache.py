"""The KV cache in the forms that decoder graphs use.

``SharedKvCache`` belongs to dialect ``ort-gqa`` and ``StaticKvCache`` to ``std24``: one buffer per
layer of ``max_kv`` positions, allocated once, read and written in place on the device.
``GrowingKvCache`` belongs to ``prim17`` and ``prim18``: past keys and values are inputs, extended
ones are outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import ArtifactError
from edge_atp.runtime.manifest import LlmSpec
from edge_atp.runtime.sessions.base import Arrays, Session

_NEG_INF = np.float32(np.finfo(np.float32).min)


class KvCache(Protocol):
    """Runs the decoder graph over new tokens and remembers their keys and values."""

    @property
    def length(self) -> int:
        """Positions filled."""

    @property
    def num_bytes(self) -> int:
        """Memory the cache holds now."""

    @property
    def can_resume(self) -> bool:
        """Whether a prompt may be entered in parts, ``copy_out`` and ``copy_in`` included."""

    @property
    def truncates_freely(self) -> bool:
        """Whether ``truncate`` costs nothing, so that keeping a short beginning pays."""

    def truncate(self, length: int) -> None:
        """Forget everything after the first ``length`` positions."""

    def copy_out(self) -> Arrays:
        """Keys and values of all positions filled, by input name, (1, kv_heads, length, d)."""

    def copy_in(self, arrays: Arrays, length: int) -> None:
        """Hold the first ``length`` positions of what ``copy_out`` gave, and nothing else."""

    def forward(self, inputs_embeds: NDArray[np.float32]) -> NDArray[np.float32]:
        """Append (S, H) tokens; returns the logits (vocab,) of the last one."""


def make_kv_cache(dialect: str, session: Session, llm: LlmSpec) -> KvCache:
    """The cache that the decoder's dialect needs.

    Raises:
        ArtifactError: unknown dialect.
    """
    caches: dict[str, Callable[[Session, LlmSpec], KvCache]] = {
        "ort-gqa": SharedKvCache,
        "prim17": GrowingKvCache,
        "prim18": GrowingKvCache,
        "std24": StaticKvCache,
    }
    if dialect not in caches:
        raise ArtifactError(
            f"decoder dialect {dialect!r} is not known to this version; it reads"
            f" {', '.join(caches)}. Export again with --dialect"
        )
    return caches[dialect](session, llm)


class SharedKvCache:
    """Preallocated buffers (1, kv_heads, max_kv, head_dim) per layer, updated in place."""

    can_resume = True
    truncates_freely = True

    def __init__(self, session: Session, llm: LlmSpec) -> None:
        self._session = session
        self._llm = llm
        self._length = 0
        shape = (1, llm.kv_heads, llm.max_kv, llm.head_dim)
        self._state = session.allocate_state(_aliases(llm), shape, np.float32)

    @property
    def length(self) -> int:
        """Positions filled."""
        return self._length

    @property
    def num_bytes(self) -> int:
        """Memory the cache holds, all of max_kv."""
        return self._state.num_bytes

    def truncate(self, length: int) -> None:
        """Forget everything after the first ``length`` positions; the buffers stay."""
        self._length = min(self._length, length)

    def copy_out(self) -> Arrays:
        """Keys and values of all positions filled, by input name, (1, kv_heads, length, d)."""
        return {name: self._state.read(name, self._length) for name in _aliases(self._llm)}

    def copy_in(self, arrays: Arrays, length: int) -> None:
        """Hold the first ``length`` positions of what ``copy_out`` gave, and nothing else."""
        for name, array in arrays.items():
            self._state.write(name, array[:, :, :length])
        self._length = length

    def forward(self, inputs_embeds: NDArray[np.float32]) -> NDArray[np.float32]:
        """Append (S, H) tokens; returns the logits (vocab,) of the last one."""
        inputs = {"inputs_embeds": inputs_embeds[None], **self._where(len(inputs_embeds))}
        outputs = self._session.run_in_place(inputs, self._state, ("logits",))
        self._length += len(inputs_embeds)
        logits: NDArray[np.float32] = outputs["logits"][0]
        return logits

    def _where(self, new: int) -> Arrays:
        """The graph's inputs that place ``new`` tokens behind those in the cache."""
        total = self._length + new
        return {
            # The operator wants the index of the last position, and the total apart from it.
            "seqlens_k": np.array([total - 1], np.int32),
            "total_sequence_length": np.array(total, np.int32),
        }


class StaticKvCache(SharedKvCache):
    """The same buffers, for graphs that are told where to write and what to hide."""

    def _where(self, new: int) -> Arrays:
        rows = self._length + np.arange(new)
        return {
            "position_ids": rows.astype(np.int64)[None],
            "write_indices": np.array([self._length], np.int64),
            "attention_bias": causal_bias(rows, self._llm.max_kv, self._llm.sliding_window),
        }


class GrowingKvCache:
    """Past keys and values (1, kv_heads, length, head_dim) that each run extends, on the device."""

    can_resume = True
    # What is kept goes through the host.
    truncates_freely = False

    def __init__(self, session: Session, llm: LlmSpec) -> None:
        self._session = session
        self._llm = llm
        self._aliases = _aliases(llm)
        shape = (1, llm.kv_heads, llm.max_kv, llm.head_dim)
        self._carry = session.allocate_carry(self._aliases, shape, np.float32)

    @property
    def length(self) -> int:
        """Positions filled."""
        return int(self._carry.shape[2])

    @property
    def num_bytes(self) -> int:
        """Memory the cache holds now."""
        return self._carry.num_bytes

    def truncate(self, length: int) -> None:
        """Forget everything after the first ``length`` positions."""
        if length >= self.length:
            return
        if length:
            kept = {name: self._carry.get(name)[:, :, :length] for name in self._aliases}
        else:
            empty = np.zeros((1, self._llm.kv_heads, 0, self._llm.head_dim), np.float32)
            kept = dict.fromkeys(self._aliases, empty)
        for name, array in kept.items():
            self._carry.set(name, array)

    def copy_out(self) -> Arrays:
        """Keys and values of all positions filled, by input name, (1, kv_heads, length, d)."""
        return {name: self._carry.get(name).copy() for name in self._aliases}

    def copy_in(self, arrays: Arrays, length: int) -> None:
        """Hold the first ``length`` positions of what ``copy_out`` gave, and nothing else."""
        for name, array in arrays.items():
            self._carry.set(name, array[:, :, :length])

    def forward(self, inputs_embeds: NDArray[np.float32]) -> NDArray[np.float32]:
        """Append (S, H) tokens; returns the logits (vocab,) of the last one."""
        past, new = self.length, int(inputs_embeds.shape[0])
        rows = np.arange(past, past + new)
        outputs = self._session.run_carrying(
            {
                "inputs_embeds": inputs_embeds[None],
                "position_ids": rows.astype(np.int64)[None],
                "attention_bias": causal_bias(rows, past + new, self._llm.sliding_window),
            },
            self._carry,
            ("logits",),
        )
        logits: NDArray[np.float32] = outputs["logits"][0]
        return logits


def _aliases(llm: LlmSpec) -> dict[str, str]:
    """Cache input -> cache output, for every layer's keys and values."""
    return {
        f"past.{layer}.{kind}": f"present.{layer}.{kind}"
        for layer in range(llm.layers)
        for kind in ("key", "value")
    }


def causal_bias(rows: NDArray[np.int64], num_keys: int, window: int | None) -> NDArray[np.float32]:
    """(1, 1, R, num_keys): 0 where the token at position ``rows[r]`` may look, else very low."""
    ahead = np.arange(num_keys)[None, :] - rows[:, None]
    hidden = ahead > 0
    if window:
        hidden |= ahead <= -window
    bias: NDArray[np.float32] = np.where(hidden, _NEG_INF, np.float32(0))[None, None]
    return bias
