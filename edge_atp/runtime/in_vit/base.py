"""What a cut inside the vision encoder sees and decides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_atp.pruning.schedule import Schedule
from edge_atp.runtime.manifest import VisionSpec
from edge_atp.runtime.outputs import Float


@dataclass(frozen=True)
class PatchTokens:
    """The tokens of one image on their way through the encoder.

    states: (1 + n, D), CLS first.
    place: (n,) int64 ascending, the patch each token without CLS stands at.
    sizes: (1 + n,) float32, patches each token stands for.
    """

    states: Float
    place: NDArray[np.int64]
    sizes: Float


@dataclass(frozen=True)
class GroupView:
    """A group of layers that has just run, up to between attention and MLP of its last layer.

    first, top: its first and last layer.
    attention: (layers, 1 + n, 1 + n), head mean of each layer.
    keys: (1 + n, head_dim), head mean, and values: (1 + n, D), heads concatenated; of ``top``.
    """

    first: int
    top: int
    attention: Float
    keys: Float
    values: Float


class EncoderRule(ABC):
    """Runs one method on one image; made anew for each.

    Class attributes:
        reads: fields of a group's view that the method looks at; the others are empty.
        weighs_sizes: whether attention counts a merged token as often as it has patches.
    Attributes:
        schedule: patches left by each cut; a stage's layer is the method's own notation.
    """

    reads: ClassVar[tuple[str, ...]] = ("attention", "keys", "values")
    weighs_sizes: ClassVar[bool] = False
    schedule: Schedule

    def __init__(self, pruner: Any, vision: VisionSpec, num_kept: int | None) -> None:
        """
        Raises:
            ConfigError: the method's layers do not exist in this encoder.
        """
        self.pruner = pruner
        self.vision = vision
        self.schedule = self._plan(vision.num_patches, num_kept)

    @abstractmethod
    def _plan(self, num_patches: int, num_kept: int | None) -> Schedule:
        """The method's schedule for this encoder."""

    @property
    def cut_layers(self) -> tuple[int, ...]:
        """Layers after whose attention tokens leave, ascending."""
        return self.schedule.layers

    @abstractmethod
    def cut(self, view: GroupView, tokens: PatchTokens) -> PatchTokens:
        """What goes on behind a group; ``tokens`` itself where nothing leaves."""


def kept_only(tokens: PatchTokens, kept: NDArray[np.int64]) -> PatchTokens:
    """CLS and the patches ``kept`` (K,), ascending indices into the n patches."""
    rows = np.concatenate([[0], kept + 1])
    return PatchTokens(tokens.states[rows], tokens.place[kept], tokens.sizes[rows])
