"""Whether a camera's frame still looks like its last one, so that its encoding can be used again.

The test reads pixels and nothing else. With a tolerance of 0 every pixel must be identical, so no
answer changes. Above 0 only every 8th pixel of every 8th row is read: something smaller than 8
pixels that moves can be missed, which is why it is off unless asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_atp.types import Frame

STEP = 8  # pixels
_MAX_CAMERAS = 32
# The whole encoder's, the exported cut's, and two methods' at one budget each: a client that asks
# with another budget each time must not fill the memory. Each keeps its own pixels, as it may be of
# an earlier frame: 1 MB of 640 x 480 at tolerance 0.
_MAX_KINDS = 4

T = TypeVar("T")


@dataclass(frozen=True)
class _Last(Generic[T]):
    pixels: NDArray[np.uint8]
    shape: tuple[int, ...]
    value: T


class FrameMemory(Generic[T]):
    """What was made of the last frame of each camera (by its name).

    What is made of one frame in several ways is told apart by ``kind``. Bounded: the 32 cameras
    used last, and of each the 4 kinds used last, so that no camera's kinds drive out another's.

    Args:
        tolerance: largest difference of a pixel that counts as unchanged, 0 to 255; below 0
            nothing is remembered.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._last: OrderedDict[str, OrderedDict[Hashable, _Last[T]]] = OrderedDict()

    def recall(self, frame: Frame, kind: Hashable = None) -> T | None:
        """What was made of the camera's last frame, if this one looks like it."""
        kinds = self._last.get(frame.camera)
        last = kinds.get(kind) if kinds else None
        if last is None or last.shape != frame.image.shape:
            return None
        if not self._unchanged(last.pixels, self._read(frame.image)):
            return None
        self._keep(frame.camera, kind, last)
        return last.value

    def remember(self, frame: Frame, value: T, kind: Hashable = None) -> None:
        """Keep what was made of a frame, in place of the camera's last one."""
        if self._tolerance < 0:
            return
        # A copy: the owner of the frame may fill its memory with the next one.
        pixels = self._read(frame.image).copy()
        self._keep(frame.camera, kind, _Last(pixels, frame.image.shape, value))

    def clear(self) -> None:
        """Forget every frame."""
        self._last.clear()

    def _keep(self, camera: str, kind: Hashable, last: _Last[T]) -> None:
        """Enter it as what was used last; what was used longest ago makes room."""
        kinds = self._last.setdefault(camera, OrderedDict())
        self._last.move_to_end(camera)
        kinds[kind] = last
        kinds.move_to_end(kind)
        if len(self._last) > _MAX_CAMERAS:
            self._last.popitem(last=False)
        if len(kinds) > _MAX_KINDS:
            kinds.popitem(last=False)

    def _read(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return image if self._tolerance == 0 else image[::STEP, ::STEP]

    def _unchanged(self, last: NDArray[np.uint8], now: NDArray[np.uint8]) -> bool:
        if self._tolerance == 0:
            return np.array_equal(last, now)
        difference = np.abs(last.astype(np.int16) - now.astype(np.int16))
        return int(difference.max(initial=0)) <= self._tolerance
