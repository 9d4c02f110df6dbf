"""Training scenes: pictures and coverage from shards, states recomputed from their seeds."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from models.warehouse_tiny.dataset import SHARD_SCENES, Shard, ShardError, load_shard
from models.warehouse_tiny.scene import sample_scene
from models.warehouse_tiny.state import SceneState

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class StoredScene:
    """image: (224, 224, 3) uint8; coverage: (NUM_ENTITIES, 256) float32; and the state."""

    seed: int
    state: SceneState
    image: np.ndarray
    coverage: np.ndarray


class SceneStore:
    """Random access to the rendered scenes of a split."""

    def __init__(self, folder: Path, split: str, scenes: int, verify: bool = True) -> None:
        """Raises ShardError when a needed shard is missing or damaged."""
        self.split = split
        self.scenes = scenes
        self._shards: list[Shard] = []
        for first in range(0, scenes, SHARD_SCENES):
            self._shards.append(load_shard(folder / f"{split}_{first:06d}.json", verify))
        stored = sum(len(shard.images) for shard in self._shards)
        if stored < scenes:
            raise ShardError(
                f"{folder}: split {split!r} holds {stored} scenes, {scenes} are needed; "
                f"run python -m models.warehouse_tiny.dataset --split {split} --scenes {scenes}"
            )

    def __len__(self) -> int:
        return self.scenes

    def __getitem__(self, seed: int) -> StoredScene:
        shard = self._shards[seed // SHARD_SCENES]
        row = seed - shard.first_seed
        return StoredScene(
            seed,
            sample_scene(self.split, seed),
            np.asarray(shard.images[row]),
            shard.coverage[row].astype(np.float32) / 255.0,
        )


def scene_order(seed: int, step: int, batch: int, scenes: int) -> list[int]:
    """Seeds of a step: consecutive pieces of a permutation that changes every epoch."""
    picked = []
    for index in range(step * batch, (step + 1) * batch):
        epoch, at = divmod(index, scenes)
        picked.append(int(_permutation(seed, epoch, scenes)[at]))
    return picked


_PERMUTATIONS: dict[tuple[int, int, int], np.ndarray] = {}


def _permutation(seed: int, epoch: int, scenes: int) -> np.ndarray:
    key = (seed, epoch, scenes)
    if key not in _PERMUTATIONS:
        if len(_PERMUTATIONS) > 3:
            _PERMUTATIONS.clear()
        _PERMUTATIONS[key] = np.random.default_rng([seed, epoch, 77]).permutation(scenes)
    return _PERMUTATIONS[key]


def prefetch(make: Callable[[int], Batch], first: int, stop: int) -> Iterator[tuple[int, Batch]]:
    """Yield (step, make(step)) in order, built one step ahead in a thread."""
    ready: queue.Queue[tuple[int, Batch | BaseException]] = queue.Queue(maxsize=2)
    ended = threading.Event()

    def fill() -> None:
        for step in range(first, stop):
            try:
                item: Batch | BaseException = make(step)
            except BaseException as error:  # handed to the consumer, which raises it
                item = error
            while not ended.is_set():
                try:
                    ready.put((step, item), timeout=0.5)
                    break
                except queue.Full:
                    continue
            if ended.is_set() or isinstance(item, BaseException):
                return

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        for _ in range(first, stop):
            step, item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield step, item
    finally:
        ended.set()
        thread.join()
