"""Messages of the node -> what is shown of them. Takes rclpy's messages and rosbags' alike: both
have the fields of the .msg files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import ImageError
from edge_atp.mask import unpack_bits
from edge_atp.types import PatchGrid, SourceRegion, Status
from edge_atp.viewing.events import STAGES, ShownAnswer, ShownImage, ShownMask

_MEDIA_TYPES = {b"\xff\xd8": "image/jpeg", b"\x89P": "image/png"}


def shown_answer(answer: Any, masks: Any | None, question: str = "") -> ShownAnswer:
    """An Answer message and its PatchMaskArray, if there is one."""
    latency = answer.latency
    return ShownAnswer(
        query_id=str(answer.query_id),
        stamp_ns=stamp_ns(answer.header.stamp),
        status=Status(answer.status),
        text=str(answer.text),
        error_msg=str(answer.error_msg),
        question=question,
        confidence=float(answer.confidence),
        visual_kept=int(answer.tokens.visual_kept),
        visual_total=int(answer.tokens.visual_total),
        latency_s={stage: float(getattr(latency, stage)) for stage in STAGES},
        masks=tuple(shown_mask(mask) for mask in masks.masks) if masks is not None else (),
    )


def shown_mask(mask: Any) -> ShownMask:
    """A PatchMask message."""
    grid = PatchGrid(int(mask.grid_rows), int(mask.grid_cols))
    scores = np.asarray(mask.scores, dtype=np.float32)
    roi = mask.roi
    return ShownMask(
        camera=str(mask.camera),
        size=(int(mask.image_width), int(mask.image_height)),
        region=SourceRegion(int(roi.x_offset), int(roi.y_offset), int(roi.width), int(roi.height)),
        grid=grid,
        kept=unpack_bits(np.asarray(mask.kept, dtype=np.uint8), grid),
        scores=scores.reshape(grid.rows, grid.cols) if scores.size else None,
    )


def shown_image(
    camera: str, message: Any, decode: Callable[[Any], NDArray[np.uint8]]
) -> ShownImage | None:
    """An Image or CompressedImage message; None if it cannot be decoded.

    JPEG and PNG are passed on as they are: a viewer shows them, and they stay small.

    Args:
        decode: message -> (height, width, 3) uint8 RGB, for messages of this origin.
    """
    stamp = stamp_ns(message.header.stamp)
    if not hasattr(message, "encoding"):
        encoded = bytes(message.data)
        if (media_type := _MEDIA_TYPES.get(encoded[:2])) is not None:
            return ShownImage(camera, stamp, encoded=encoded, media_type=media_type)
    try:
        return ShownImage(camera, stamp, pixels=decode(message))
    except ImageError:
        return None


def stamp_ns(stamp: Any) -> int:
    """A Time message as nanoseconds."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)
