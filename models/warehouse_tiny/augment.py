"""Picture changes that keep patch labels valid: no shifts, no flips.

Covers what a real camera adds (exposure, noise, blur, low resolution, JPEG, something in the way).
Works on (H, W, 3) uint8 in place of a float pipeline: about 1 ms an image.
"""

from __future__ import annotations

import cv2
import numpy as np


def augment(image: np.ndarray, rng: np.random.Generator, amount: float = 1.0) -> np.ndarray:
    """A changed copy of a uint8 RGB image; ``amount`` 0 changes nothing, 1 most pictures."""
    if rng.random() >= 0.8 * amount:
        return image
    if rng.random() < 0.6:
        image = _exposure(image, rng)
    if rng.random() < 0.25:
        image = _soften(image, rng)
    if rng.random() < 0.15:
        image = _occlude(image, rng)
    if rng.random() < 0.3:
        image = _noise(image, rng)
    if rng.random() < 0.15:
        quality = int(rng.integers(15, 90))
        _, code = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR))
    return image


def _exposure(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gain, offset and gamma with a slight cast; half of the pictures paler or richer."""
    gain = rng.uniform(0.5, 1.45)
    offset = rng.uniform(-25, 25)
    gamma = rng.uniform(0.8, 1.25)
    levels = 255 * (np.arange(256) / 255) ** gamma
    table = np.empty((1, 256, 3), np.uint8)
    for channel in range(3):
        cast = rng.uniform(0.93, 1.07)
        table[0, :, channel] = np.clip((levels - 127) * gain * cast + 127 + offset, 0, 255)
    image = np.asarray(cv2.LUT(image, table))
    if rng.random() < 0.5:
        keep = rng.uniform(0.65, 1.15)
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        image = np.asarray(cv2.addWeighted(image, keep, grey, 1 - keep, 0))
    return image


def _soften(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur, or down to a smaller picture and back."""
    if rng.random() < 0.5:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 2.0)))
    height, width = image.shape[:2]
    side = int(rng.integers(width // 3, width))
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR))


def _occlude(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One to four small rectangles of one colour each."""
    image = image.copy()
    height, width = image.shape[:2]
    for _ in range(rng.integers(1, 5)):
        h, w = rng.integers(6, 26, 2)
        top, left = rng.integers(0, height - h), rng.integers(0, width - w)
        image[top : top + h, left : left + w] = rng.integers(0, 256, 3)
    return image


def _noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise, sigma 3 to 30 levels."""
    cv2.setRNGSeed(int(rng.integers(2**31 - 1)))
    noise = np.empty(image.shape, np.int16)
    cv2.randn(noise, 0, float(rng.uniform(3, 30)))
    return np.asarray(cv2.add(image, noise, dtype=cv2.CV_8U))
