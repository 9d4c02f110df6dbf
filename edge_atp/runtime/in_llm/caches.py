"""The KV cache of one decoder block, in the forms its dialect uses; see ``runtime.kv_cache``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import ArtifactError
from edge_atp.runtime.kv_cache import causal_bias
from edge_atp.runtime.manifest import LlmSpec
from edge_atp.runtime.outputs import Float
from edge_atp.runtime.sessions.base import Arrays, Session


@dataclass(frozen=True)
class Aside:
    """One row run beside the cache.

    state: (H,) entering the next block.
    queries, keys: layer -> (heads, 1, d) and (kv_heads, 1, d), rotated.
    """

    state: Float
    queries: Mapping[int, Float]
    keys: Mapping[int, Float]


class BlockCache(ABC):
    """Runs one block over new tokens and remembers their keys and values.

    Attributes:
        length: positions filled.
    """

    def __init__(self, session: Session, llm: LlmSpec, layers: range) -> None:
        self._session = session
        self._llm = llm
        self.layers = layers
        self.is_last = layers.stop == llm.layers
        self._aliases = {
            f"past.{layer}.{kind}": f"present.{layer}.{kind}"
            for layer in layers
            for kind in ("key", "value")
        }
        self._shape = (1, llm.kv_heads, llm.max_kv, llm.head_dim)

    length: int

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Memory the cache takes."""

    @property
    def held_bytes(self) -> int:
        """Memory of the positions filled."""
        row = self._llm.kv_heads * self._llm.head_dim * np.dtype(np.float32).itemsize
        return 2 * len(self.layers) * self.length * row

    @abstractmethod
    def truncate(self, length: int) -> None:
        """Forget everything after the first ``length`` positions."""

    @abstractmethod
    def run(
        self, hidden: Float, positions: NDArray[np.int64], queries: bool = False
    ) -> tuple[Float, dict[int, Float]]:
        """Append (S, H) tokens at ``positions`` (S,).

        Returns:
            (S, H) states of the next block, or logits (1, vocab) of the last one; and with
            ``queries`` each layer's (heads, S, d).
        """

    @abstractmethod
    def keys_values(self, layer: int, count: int) -> tuple[Float, Float]:
        """(kv_heads, count, d) keys and values of the first positions of a layer."""

    @abstractmethod
    def _where(self, past: int, new: int) -> Arrays:
        """The dialect's inputs that place ``new`` tokens behind ``past`` others."""

    @abstractmethod
    def _past(self, count: int) -> Arrays:
        """The first ``count`` positions as the graph takes them in from the host."""

    def run_aside(self, state: Float, position: int, count: int) -> Aside:
        """Run one row (H,) at ``position`` that sees the first ``count`` rows; nothing is kept."""
        inputs = self._inputs(state[None], np.array([position]), count)
        out = self._session.run({**inputs, **self._past(count)})
        present = {
            layer: out[f"present.{layer}.key"][0, :, count : count + 1] for layer in self.layers
        }
        return Aside(out["next_hidden"][0, 0], self._queries(out), present)

    def _inputs(self, hidden: Float, positions: NDArray[np.int64], past: int) -> Arrays:
        return {
            "hidden": np.ascontiguousarray(hidden)[None],
            "position_ids": positions[None],
            **self._where(past, len(hidden)),
        }

    def _outputs(self, queries: bool) -> tuple[str, ...]:
        names = ("logits" if self.is_last else "next_hidden",)
        return (*names, *(f"queries.{layer}" for layer in self.layers)) if queries else names

    def _results(self, out: Arrays, queries: bool) -> tuple[Float, dict[int, Float]]:
        hidden: Float = out["logits" if self.is_last else "next_hidden"][0]
        return hidden, self._queries(out) if queries else {}

    def _queries(self, out: Arrays) -> dict[int, Float]:
        """By layer (heads, S, d), from (1, S, heads * d) or (1, heads, S, d)."""
        found = {}
        for layer in self.layers:
            array = out[f"queries.{layer}"]
            if array.ndim == 3:
                split = array.reshape(array.shape[1], self._llm.heads, self._llm.head_dim)
                array = split.transpose(1, 0, 2)[None]
            found[layer] = array[0]
        return found


class SharedBlockCache(BlockCache):
    """Dialect ``ort-gqa``: one buffer per layer of ``max_kv`` positions, updated in place."""

    def __init__(self, session: Session, llm: LlmSpec, layers: range) -> None:
        super().__init__(session, llm, layers)
        self._state = session.allocate_state(self._aliases, self._shape, np.float32)
        self.length = 0

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers, all of max_kv."""
        return self._state.num_bytes

    def truncate(self, length: int) -> None:
        """Forget everything after the first ``length`` positions; the buffers stay."""
        self.length = min(self.length, length)

    def run(
        self, hidden: Float, positions: NDArray[np.int64], queries: bool = False
    ) -> tuple[Float, dict[int, Float]]:
        """Append (S, H) tokens at ``positions`` (S,)."""
        inputs = self._inputs(hidden, positions, self.length)
        out = self._session.run_in_place(inputs, self._state, self._outputs(queries))
        self.length += len(hidden)
        return self._results(out, queries)

    def keys_values(self, layer: int, count: int) -> tuple[Float, Float]:
        """(kv_heads, count, d) keys and values of the first positions of a layer."""
        keys, values = (
            self._state.read(f"past.{layer}.{kind}", count)[0] for kind in ("key", "value")
        )
        return keys, values

    def _past(self, count: int) -> Arrays:
        """Buffers of full length: their shape is part of the graph."""
        arrays: Arrays = {}
        for name in self._aliases:
            arrays[name] = np.zeros(self._shape, np.float32)
            arrays[name][:, :, :count] = self._state.read(name, count)
        return arrays

    def _where(self, past: int, new: int) -> Arrays:
        # The operator wants the index of the last position, and the total apart from it.
        return {
            "seqlens_k": np.array([past + new - 1], np.int32),
            "total_sequence_length": np.array(past + new, np.int32),
        }


class StaticBlockCache(SharedBlockCache):
    """Dialect ``std24``: the same buffers, and told where to write and what to hide."""

    def _where(self, past: int, new: int) -> Arrays:
        rows = past + np.arange(new)
        return {
            "write_indices": np.array([past], np.int64),
            "attention_bias": causal_bias(rows, self._llm.max_kv, self._llm.sliding_window),
        }


class GrowingBlockCache(BlockCache):
    """Dialects ``prim17`` and ``prim18``: keys and values that each run extends, on the device."""

    def __init__(self, session: Session, llm: LlmSpec, layers: range) -> None:
        super().__init__(session, llm, layers)
        self._carry = session.allocate_carry(self._aliases, self._shape, np.float32)

    @property
    def length(self) -> int:  # type: ignore[override]
        """Positions filled."""
        return int(self._carry.shape[2])

    @property
    def num_bytes(self) -> int:
        """Memory the cache holds now."""
        return self._carry.num_bytes

    def truncate(self, length: int) -> None:
        """Forget everything after the first ``length`` positions."""
        if length < self.length:
            for name, array in self._past(length).items():
                self._carry.set(name, array)

    def run(
        self, hidden: Float, positions: NDArray[np.int64], queries: bool = False
    ) -> tuple[Float, dict[int, Float]]:
        """Append (S, H) tokens at ``positions`` (S,)."""
        inputs = self._inputs(hidden, positions, self.length)
        out = self._session.run_carrying(inputs, self._carry, self._outputs(queries))
        return self._results(out, queries)

    def keys_values(self, layer: int, count: int) -> tuple[Float, Float]:
        """(kv_heads, count, d) keys and values of the first positions of a layer."""
        keys, values = (
            self._carry.get(f"past.{layer}.{kind}")[0, :, :count] for kind in ("key", "value")
        )
        return keys, values

    def _past(self, count: int) -> Arrays:
        # All at once: values of different lengths are never mixed.
        return {name: self._carry.get(name)[:, :, :count] for name in self._aliases}

    def _where(self, past: int, new: int) -> Arrays:
        rows = np.arange(past, past + new)
        return {"attention_bias": causal_bias(rows, past + new, self._llm.sliding_window)}


_BY_DIALECT: dict[str, type[BlockCache]] = {
    "ort-gqa": SharedBlockCache,
    "std24": StaticBlockCache,
    "prim17": GrowingBlockCache,
    "prim18": GrowingBlockCache,
}


def make_block_cache(dialect: str, session: Session, llm: LlmSpec, layers: range) -> BlockCache:
    """The cache that the block's dialect needs.

    Raises:
        ArtifactError: unknown dialect.
    """
    if dialect not in _BY_DIALECT:
        raise ArtifactError(
            f"decoder dialect {dialect!r} is not known to this version; it reads"
            f" {', '.join(_BY_DIALECT)}. Export again with --dialect"
        )
    return _BY_DIALECT[dialect](session, llm, layers)
