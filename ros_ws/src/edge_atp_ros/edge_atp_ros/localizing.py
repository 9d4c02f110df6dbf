"""From a kept-patch mask to a point on the shelf: what a planner does with an answer's evidence.

A patch is some 0.35 m wide at the rack's distance, so the mask cannot place an item by itself. It
does two other things. It shows whether the model looked at the slot it names; if not, the answer
has no ground and is not acted upon (over 269 right answers at 64 of 256 patches, the least share
kept of the named slot was 0.5; 59 % of the slots that were not named also had as much, so this
catches what is blind, not what is wrong). And its scores shift the goal a little to the side of
the slot where the evidence lies (sideways error 4.4 instead of 4.7 cm, at a weight of 0.25;
without scores it does not help).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from edge_atp_msgs.msg import PatchMask
from numpy.typing import NDArray

from edge_atp.mask import unpack_bits
from edge_atp.types import PatchGrid
from edge_atp_ros.answer_text import Place
from edge_atp_ros.shelf import CameraModel, Points, ShelfGeometry


@dataclass(frozen=True)
class Evidence:
    """What a mask says about one slot.

    kept_share: share of the slot's patches that were kept, [0, 1]; 0 where the grid does not
        reach.
    shift_m: how far to the left (REP 103: +y) of the slot's middle the evidence lies.
    """

    kept_share: float
    shift_m: float


def evidence(mask: PatchMask, place: Place, shelf: ShelfGeometry, camera: CameraModel) -> Evidence:
    """The part of a mask that lies on a slot, seen by a camera of known pose."""
    columns_px, rows_px = _patch_centres(mask)
    inside = _inside(camera.project(shelf.face(place)), columns_px, rows_px)
    if not inside.any():
        return Evidence(0.0, 0.0)
    kept_share = float(_kept(mask)[inside].mean())
    weights = _weights(mask) * inside
    if weights.sum() <= 0:
        return Evidence(kept_share, 0.0)
    # Against the middle of the slot's patches, not of the slot: where all are kept alike, the
    # coarse grid must not shift anything.
    sides = [
        camera.on_plane(_centre(share, columns_px, rows_px), shelf.item_depth_m)[1]
        for share in (weights, inside.astype(np.float64))
    ]
    return Evidence(kept_share, float(sides[0] - sides[1]))


def _centre(weights: Points, columns_px: Points, rows_px: Points) -> tuple[float, float]:
    """(column, row) of the centre of (rows, cols) weights, pixels."""
    total = weights.sum()
    return (
        float((weights.sum(axis=0) * columns_px).sum() / total),
        float((weights.sum(axis=1) * rows_px).sum() / total),
    )


def _patch_centres(mask: PatchMask) -> tuple[Points, Points]:
    """(cols,) pixel columns and (rows,) pixel rows of the patches' centres."""
    roi = mask.roi
    columns = roi.x_offset + (np.arange(mask.grid_cols) + 0.5) * roi.width / mask.grid_cols
    rows = roi.y_offset + (np.arange(mask.grid_rows) + 0.5) * roi.height / mask.grid_rows
    return columns, rows


def _inside(polygon: Points, columns_px: Points, rows_px: Points) -> NDArray[np.bool_]:
    """(rows, cols): which patch centres lie in a polygon of (N, 2) pixels."""
    outline = polygon.astype(np.float32).reshape(-1, 1, 2)
    hits = [
        [cv2.pointPolygonTest(outline, (float(x), float(y)), False) >= 0 for x in columns_px]
        for y in rows_px
    ]
    return np.array(hits, dtype=np.bool_)


def _kept(mask: PatchMask) -> NDArray[np.bool_]:
    packed = np.asarray(mask.kept, dtype=np.uint8)
    return unpack_bits(packed, PatchGrid(mask.grid_rows, mask.grid_cols))


def _weights(mask: PatchMask) -> NDArray[np.float64]:
    """(rows, cols): scores of the kept patches above the lowest of all; 1 each without scores."""
    kept = _kept(mask).astype(np.float64)
    if len(mask.scores) == 0:
        return kept
    scores = np.asarray(mask.scores, dtype=np.float64).reshape(kept.shape)
    return np.asarray(kept * (scores - scores.min()))
