"""Kept patches as bits, as an image, and as a picture a person can read."""

from __future__ import annotations

import textwrap

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_atp.types import PatchGrid, PatchMask, SourceRegion

_DIM = 0.25  # brightness of pruned patches in an overlay
_EDGE_RGB = (255, 196, 0)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def to_bool(kept_indices: NDArray[np.int64], num_patches: int) -> NDArray[np.bool_]:
    """(K,) patch indices -> (N,) bool."""
    kept = np.zeros(num_patches, dtype=np.bool_)
    kept[kept_indices] = True
    return kept


def pack_bits(kept: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(N,) bool -> (ceil(N/8),) uint8, row-major, most significant bit first, padded with 0."""
    return np.packbits(kept, bitorder="big")


def unpack_bits(packed: NDArray[np.uint8], grid: PatchGrid) -> NDArray[np.bool_]:
    """Inverse of ``pack_bits``: (ceil(N/8),) uint8 -> (rows, cols) bool."""
    bits = np.unpackbits(packed, count=grid.num_patches, bitorder="big")
    return bits.reshape(grid.rows, grid.cols).astype(np.bool_)


def mask_image(mask: PatchMask) -> NDArray[np.uint8]:
    """The mask in the camera's pixels.

    Returns:
        (height, width) uint8 of the frame's size: 255 where a kept patch lies, 0 elsewhere and
        outside the region the grid covers.
    """
    height, width = mask.frame.image.shape[:2]
    image = np.zeros((height, width), dtype=np.uint8)
    region = mask.region
    image[region.y : region.y + region.height, region.x : region.x + region.width] = _stretch(
        mask.kept, mask.grid, region
    ) * np.uint8(255)
    return image


def overlay(mask: PatchMask, caption: str = "") -> NDArray[np.uint8]:
    """The frame with kept patches bright and the rest dimmed, the caption below.

    Args:
        mask: which patches were kept of which frame.
        caption: lines separated by newlines; long ones are wrapped. Plain ASCII is drawn.
    Returns:
        (height + caption, width, 3) uint8 RGB.
    """
    kept = mask_image(mask)
    image = mask.frame.image
    dimmed = (image * np.float32(_DIM)).astype(np.uint8)
    picture = np.where(kept[..., None] > 0, image, dimmed)
    contours, _ = cv2.findContours(kept, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    thickness = max(1, min(picture.shape[:2]) // 320)
    picture = cv2.drawContours(np.ascontiguousarray(picture), contours, -1, _EDGE_RGB, thickness)
    return np.vstack([picture, _caption_bar(caption, picture.shape[1])]) if caption else picture


def _stretch(kept: NDArray[np.bool_], grid: PatchGrid, region: SourceRegion) -> NDArray[np.uint8]:
    # Pixel y belongs to patch row floor(y * rows / height), the inverse of the resize.
    rows = np.arange(region.height) * grid.rows // region.height
    cols = np.arange(region.width) * grid.cols // region.width
    stretched: NDArray[np.bool_] = kept.reshape(grid.rows, grid.cols)[np.ix_(rows, cols)]
    return stretched.astype(np.uint8)


def _caption_bar(caption: str, width: int) -> NDArray[np.uint8]:
    scale = max(0.4, width / 1100)
    (letter_width, _), _ = cv2.getTextSize("n", _FONT, scale, 1)
    (_, height), baseline = cv2.getTextSize("Ag", _FONT, scale, 1)
    per_line = max(8, int((width - 16) / (letter_width * 1.05)))
    lines = [part for line in caption.split("\n") for part in textwrap.wrap(line, per_line)]
    line_height = height + baseline + 4
    bar = np.full((line_height * len(lines) + 8, width, 3), 24, dtype=np.uint8)
    for number, line in enumerate(lines):
        start = (8, 4 + line_height * number + height)
        cv2.putText(bar, line, start, _FONT, scale, (240, 240, 240), 1, cv2.LINE_AA)
    return bar
