"""Where a rack's slots are, and which of them a camera's pixels show. Pure geometry, no ROS.

The shelf frame follows REP 103 as a robot facing the rack sees it: x forward into the rack, y to
the left, z up; metres. Its origin is on the floor, in the middle of the rack's front plane. The
camera's optical frame has z forward, x right, y down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import ConfigError
from edge_atp_ros.answer_text import Place

Points = NDArray[np.float64]


@dataclass(frozen=True)
class ShelfGeometry:
    """A rack of equal slots.

    shelves: names from top to bottom, as the answers use them.
    board_heights_m: z of the floor of each shelf, in the same order.
    num_columns: slots of a shelf, counted from 1 from the left.
    slot_width_m: distance between neighbouring slots.
    slot_height_m: clear height of a slot.
    item_depth_m: x of the vertical plane in which items stand.
    frame_id: name of the shelf frame.
    """

    shelves: tuple[str, ...]
    board_heights_m: tuple[float, ...]
    num_columns: int
    slot_width_m: float
    slot_height_m: float
    item_depth_m: float
    frame_id: str = "shelf"

    def __post_init__(self) -> None:
        if len(self.shelves) != len(self.board_heights_m) or not self.shelves:
            raise ConfigError(
                f"board_heights has {len(self.board_heights_m)} values for {len(self.shelves)}"
                f" shelves ({', '.join(self.shelves)}); give one height for each"
            )
        for name in ("num_columns", "slot_width_m", "slot_height_m"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be positive")

    def places(self) -> list[Place]:
        """Every slot, from the top left, row by row."""
        columns = range(1, self.num_columns + 1)
        return [Place(shelf, column) for shelf in self.shelves for column in columns]

    def floor_centre(self, place: Place) -> Points:
        """(3,) where an item in the middle of a slot stands.

        Raises:
            ConfigError: the rack has no such slot.
        """
        if place.shelf not in self.shelves or not 1 <= place.slot <= self.num_columns:
            raise ConfigError(
                f"place is {place}; this rack has {', '.join(self.shelves)} shelf and slots 1 to"
                f" {self.num_columns}"
            )
        y = ((self.num_columns + 1) / 2 - place.slot) * self.slot_width_m
        return np.array([self.item_depth_m, y, self.board_heights_m[self._level(place)]])

    def face(self, place: Place) -> Points:
        """(4, 3) corners of a slot in the items' plane: top left, top right, bottom right, left."""
        x, y, z = self.floor_centre(place)
        half, top = self.slot_width_m / 2, z + self.slot_height_m
        return np.array(
            [[x, y + half, top], [x, y - half, top], [x, y - half, z], [x, y + half, z]]
        )

    def _level(self, place: Place) -> int:
        return self.shelves.index(place.shelf)


@dataclass(frozen=True)
class CameraModel:
    """A pinhole camera without distortion, at a known pose in the shelf frame.

    focal_px: (fx, fy). centre_px: (cx, cy). Both as in CameraInfo.k.
    position_m: (x, y, z) of the optical centre in the shelf frame.
    orientation: quaternion (x, y, z, w) of the optical frame in the shelf frame.
    """

    focal_px: tuple[float, float]
    centre_px: tuple[float, float]
    position_m: tuple[float, ...]
    orientation: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.position_m) != 3:
            raise ConfigError(f"camera_position is {list(self.position_m)}; give x, y, z")
        norm = float(np.linalg.norm(self.orientation)) if len(self.orientation) == 4 else 0.0
        if abs(norm - 1.0) > 1e-3:
            raise ConfigError(
                f"camera_orientation is {list(self.orientation)}; give a unit quaternion x, y, z, w"
            )

    def project(self, points: Points) -> Points:
        """(N, 2) pixels (column, row) of (N, 3) points in the shelf frame; NaN if behind."""
        local = (points - np.asarray(self.position_m)) @ rotation_matrix(self.orientation)
        depth = np.where(local[:, 2] > 1e-6, local[:, 2], np.nan)
        return np.stack(
            [local[:, i] / depth * self.focal_px[i] + self.centre_px[i] for i in (0, 1)], axis=1
        )

    def on_plane(self, pixel: Sequence[float], x_m: float) -> Points:
        """(3,) where the ray through a pixel meets the plane x = x_m of the shelf frame."""
        local = [(pixel[i] - self.centre_px[i]) / self.focal_px[i] for i in (0, 1)]
        ray = rotation_matrix(self.orientation) @ np.array([*local, 1.0])
        start = np.asarray(self.position_m)
        return start + ray * (x_m - start[0]) / ray[0]


def rotation_matrix(quaternion: Sequence[float]) -> Points:
    """(3, 3) rotation of a unit quaternion (x, y, z, w)."""
    x, y, z, w = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
