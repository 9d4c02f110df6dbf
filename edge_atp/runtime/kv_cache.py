"""The KV cache in the two forms that decoder graphs use.

``SharedKvCache`` belongs to dialect ``ort-gqa``: one buffer per layer of ``max_kv`` positions,
allocated once, read and written in place on the device. ``GrowingKvCache`` belongs to dialects
``prim17`` and ``prim18``: past keys and values are inputs, extended ones are outputs.
"""

from __future__ import annotations

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

    def truncate(self, length: int) -> None:
        """Forget everything after the first ``length`` positions."""

    def forward(self, inputs_embeds: NDArray[np.float32]) -> NDArray[np.float32]:
        """Append (S, H) tokens; returns the logits (vocab,) of the last one."""


def make_kv_cache(dialect: str, session: Session, llm: LlmSpec) -> KvCache:
    """The cache that the decoder's dialect needs.

    Raises:
        ArtifactError: unknown dialect.
    """
    caches: dict[str, type[SharedKvCache] | type[GrowingKvCache]] = {
        "ort-gqa": SharedKvCache,
        "prim17": GrowingKvCache,
        "prim18": GrowingKvCache,
    }
    if dialect not in caches:
        raise ArtifactError(
            f"decoder dialect {dialect!r} is not known to this version; it reads"
            f" {', '.join(caches)}. Export again with --dialect"
        )
    return caches[dialect](session, llm)


class SharedKvCache:
    """Preallocated buffers (1, kv_heads, max_kv, head_dim) per layer, updated in place."""

    def __init__(self, session: Session, llm: LlmSpec) -> None:
        self._session = session
        self._length = 0
        aliases = {
            f"past.{i}.{kind}": f"present.{i}.{kind}"
            for i in range(llm.layers)
            for kind in ("key", "value")
        }
        shape = (1, llm.kv_heads, llm.max_kv, llm.head_dim)
        self._state = session.allocate_state(aliases, shape, np.float32)

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

    def forward(self, inputs_embeds: NDArray[np.float32]) -> NDArray[np.float32]:
        """Append (S, H) tokens; returns the logits (vocab,) of the last one."""
        total = self._length + int(inputs_embeds.shape[0])
        inputs: Arrays = {
            "inputs_embeds": inputs_embeds[None],
            # The operator wants the index of the last position, and the total apart from it.
            "seqlens_k": np.array([total - 1], np.int32),
            "total_sequence_length": np.array(total, np.int32),
        }
        outputs = self._session.run_in_place(inputs, self._state, ("logits",))
        self._length = total
        logits: NDArray[np.float32] = outputs["logits"][0]
        return logits


class GrowingKvCache:
    """Past keys and values (1, kv_heads, length, head_dim) that each run extends, on the device."""

    def __init__(self, session: Session, llm: LlmSpec) -> None:
        self._session = session
        self._llm = llm
        self._aliases = {
            f"past.{i}.{kind}": f"present.{i}.{kind}"
            for i in range(llm.layers)
            for kind in ("key", "value")
        }
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

    def forward(self, inputs_embeds: NDArray[np.float32]) -> NDArray[np.float32]:
        """Append (S, H) tokens; returns the logits (vocab,) of the last one."""
        past, new = self.length, int(inputs_embeds.shape[0])
        # Row r may see every past position and the new ones up to itself.
        ahead = np.arange(past + new)[None, :] - (past + np.arange(new)[:, None])
        hidden = ahead > 0
        if self._llm.sliding_window:
            hidden |= ahead <= -self._llm.sliding_window
        outputs = self._session.run_carrying(
            {
                "inputs_embeds": inputs_embeds[None],
                "position_ids": np.arange(past, past + new, dtype=np.int64)[None],
                "attention_bias": np.where(hidden, _NEG_INF, np.float32(0))[None, None],
            },
            self._carry,
            ("logits",),
        )
        logits: NDArray[np.float32] = outputs["logits"][0]
        return logits
