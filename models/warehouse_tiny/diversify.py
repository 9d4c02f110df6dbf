"""Scene changes beyond what the generator draws, for the last stage: viewpoint and colour.

Unlike ``augment`` these move things, so picture and coverage change together. The pictures stay
training scenes; no camera, material or shade of the ``shifted`` split is ever rendered for them.
"""

from __future__ import annotations

import colorsys
from dataclasses import replace

import cv2
import numpy as np

from models.warehouse_tiny.scenes import StoredScene
from models.warehouse_tiny.vocabulary import NUM_PATCHES

GRID = int(NUM_PATCHES**0.5)
FINE = 4
"""Cells a patch side that coverage is warped at."""
MAX_SHIFT = 0.05
MAX_ZOOM = 0.07
MAX_ROLL_DEG = 2.0
MAX_TILT = 0.025
MAX_HUE_DEG = 6.0


def diversify(scene: StoredScene, rng: np.random.Generator) -> StoredScene:
    """A scene seen from elsewhere, between walls of another colour; one in five is unchanged."""
    if rng.random() < 0.2:
        return scene
    image, coverage = scene.image, scene.coverage
    if rng.random() < 0.7:
        image, coverage = _move(image, coverage, _viewpoint(rng))
    if rng.random() < 0.6:
        image = _tint_surroundings(image, rng)
    if rng.random() < 0.4:
        image = _turn_hue(image, rng.uniform(-MAX_HUE_DEG, MAX_HUE_DEG))
    return replace(scene, image=image, coverage=coverage)


def _viewpoint(rng: np.random.Generator) -> np.ndarray:
    """3x3 homography on the unit square: roll, zoom, shift, and a tilt of the picture plane."""
    angle = np.radians(rng.uniform(-MAX_ROLL_DEG, MAX_ROLL_DEG))
    zoom = 1.0 + rng.uniform(-MAX_ZOOM, MAX_ZOOM)
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    shift = rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2)
    tilt = rng.uniform(-MAX_TILT, MAX_TILT, 2)
    centre = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1.0]])
    turn = np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]], [tilt[0], tilt[1], 1.0]])
    return np.asarray(np.linalg.inv(centre) @ turn @ centre)


def _move(
    image: np.ndarray, coverage: np.ndarray, homography: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Warp picture and coverage alike; what comes in from outside shows no entity."""
    moved = cv2.warpPerspective(
        image,
        _in_pixels(homography, image.shape[0]),
        image.shape[1::-1],
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    side = GRID * FINE
    to_fine = _in_pixels(homography, side)
    found = np.zeros_like(coverage)
    for entity in np.flatnonzero(coverage.any(axis=1)):
        fine = cv2.resize(
            coverage[entity].reshape(GRID, GRID), (side, side), interpolation=cv2.INTER_NEAREST
        )
        warped = cv2.warpPerspective(fine, to_fine, (side, side), flags=cv2.INTER_LINEAR)
        found[entity] = warped.reshape(GRID, FINE, GRID, FINE).mean((1, 3)).ravel()
    return np.asarray(moved), found


def _in_pixels(homography: np.ndarray, side: int) -> np.ndarray:
    """The homography for a grid of ``side`` pixels whose centres lie at half integers."""
    scale = np.array([[side, 0, -0.5], [0, side, -0.5], [0, 0, 1.0]])
    return np.asarray(scale @ homography @ np.linalg.inv(scale))


def _tint_surroundings(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Multiply grey surfaces by two colours that blend across the picture; vivid ones stay."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    grey = np.clip((150.0 - hsv[..., 1]) / 60.0, 0.0, 1.0).astype(np.float32)
    near, far = (
        np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.0, 0.4), 1.0), np.float32)
        for _ in range(2)
    )
    field = cv2.resize(
        rng.random((4, 4)).astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_CUBIC
    ).clip(0.0, 1.0)[..., None]
    tint = 1.0 + grey[..., None] * (near * field + far * (1.0 - field) - 1.0)
    return np.asarray((image * tint).clip(0, 255).astype(np.uint8))


def _turn_hue(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate the hue of the whole picture, as another white balance does."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(np.int16) + round(degrees / 2)) % 180
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))
