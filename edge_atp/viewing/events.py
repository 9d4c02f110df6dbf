"""What can be shown of a running or recorded node: pictures, and answers with their masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_atp.types import PatchGrid, SourceRegion, Status

STAGES = ("queue_wait", "preprocess", "vision_encode", "prune", "prefill", "decode", "total")


@dataclass(frozen=True)
class ShownImage:
    """A camera's picture. pixels: (height, width, 3) uint8 RGB, or encoded: JPEG or PNG bytes of
    ``media_type``; one of the two. stamp_ns: capture time.
    """

    camera: str
    stamp_ns: int
    pixels: NDArray[np.uint8] | None = None
    encoded: bytes = b""
    media_type: str = ""


@dataclass(frozen=True)
class ShownMask:
    """Kept patches of one image.

    size: (width, height) of the source image, pixels. region: of it that the grid covers.
    kept: (rows, cols) bool. scores: (rows, cols) float32, or None.
    """

    camera: str
    size: tuple[int, int]
    region: SourceRegion
    grid: PatchGrid
    kept: NDArray[np.bool_]
    scores: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class ShownAnswer:
    """A final answer. latency_s: by stage; all 0 where the bag was written without timings."""

    query_id: str
    stamp_ns: int
    status: Status
    text: str
    error_msg: str = ""
    question: str = ""
    confidence: float = 0.0
    visual_kept: int = 0
    visual_total: int = 0
    latency_s: Mapping[str, float] = field(default_factory=dict)
    masks: tuple[ShownMask, ...] = ()
