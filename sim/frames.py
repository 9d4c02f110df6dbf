"""The cell's frames: MuJoCo's world, the shelf frame (REP 103), the camera's optical frame.

World: x to the right and y into the rack as the camera sees it, z up, origin on the floor.
Shelf: x into the rack, y to the left, z up, origin on the floor in the middle of the rack's front.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from models.warehouse_tiny.scene import RACK_CENTRE_X_M
from models.warehouse_tiny.state import Camera

SHELF_FRAME = "shelf"
CAMERA_FRAME = "cell_camera_optical_frame"
RACK_FRONT_Y_M = -0.5

_WORLD_TO_SHELF = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
_SHELF_ORIGIN_M = np.array([RACK_CENTRE_X_M, RACK_FRONT_Y_M, 0.0])

Vector = NDArray[np.float64]


def to_shelf(point_m: Vector) -> Vector:
    """(3,) world -> shelf frame."""
    return _WORLD_TO_SHELF @ (np.asarray(point_m, dtype=np.float64) - _SHELF_ORIGIN_M)


def to_world(point_m: Vector) -> Vector:
    """(3,) shelf frame -> world."""
    return _WORLD_TO_SHELF.T @ np.asarray(point_m, dtype=np.float64) + _SHELF_ORIGIN_M


def focal_px(camera: Camera, height: int) -> float:
    """Focal length in pixels; MuJoCo's fovy is the vertical angle of view, degrees."""
    return height / 2 / math.tan(math.radians(camera.fovy) / 2)


def camera_pose(camera: Camera) -> tuple[Vector, Vector]:
    """(3,) position and (4,) quaternion x, y, z, w of the optical frame in the shelf frame.

    Raises:
        ValueError: the camera is rolled.
    """
    if camera.roll:
        raise ValueError(f"camera.roll is {camera.roll}; the cell's camera must be upright")
    azimuth, elevation = math.radians(camera.azimuth), math.radians(camera.elevation)
    forward = np.array(
        [
            math.cos(elevation) * math.cos(azimuth),
            math.cos(elevation) * math.sin(azimuth),
            math.sin(elevation),
        ]
    )
    position = np.array(camera.lookat_m) - camera.distance_m * forward
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(forward, right), forward], axis=1)
    return to_shelf(position), _quaternion(_WORLD_TO_SHELF @ axes)


def _quaternion(rotation: Vector) -> Vector:
    """(4,) x, y, z, w of a (3, 3) rotation; the largest component is positive."""
    # Bar-Itzhack 2000: the eigenvector of this matrix, good for every rotation.
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    k = np.array(
        [
            [xx - yy - zz, yx + xy, zx + xz, zy - yz],
            [yx + xy, yy - xx - zz, zy + yz, xz - zx],
            [zx + xz, zy + yz, zz - xx - yy, yx - xy],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    vector = np.linalg.eigh(k / 3.0)[1][:, -1]
    return np.asarray(vector * np.sign(vector[np.argmax(np.abs(vector))]))
