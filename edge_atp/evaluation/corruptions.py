"""Image corruptions at five severities, the same pixels for the same image and seed.

Drawn with OpenCV and NumPy. Noise, blur, brightness and JPEG parameters are those of ImageNet-C
(Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions");
sizes in pixels were set there for 224 pixel images and are scaled with the shorter side, so that a
640 x 480 frame looks as disturbed as its 224 pixel version. ImageNet-C has no occlusion: grey
rectangles cover a stated share of the image. The package ``imagecorruptions`` is not used: it
depends on ``opencv-python``, which cannot be installed beside ``opencv-python-headless``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import ConfigError

SEVERITIES = (1, 2, 3, 4, 5)
_REFERENCE_SIDE = 224

_NOISE_STD = (0.08, 0.12, 0.18, 0.26, 0.38)  # of the range [0, 1]
_BLUR_SIGMA = (1.0, 2.0, 3.0, 4.0, 6.0)  # pixels of a 224 pixel image
_BRIGHTNESS_SHIFT = (0.1, 0.2, 0.3, 0.4, 0.5)  # added to V of HSV
_JPEG_QUALITY = (25, 18, 15, 10, 7)
_OCCLUDED_SHARE = (0.05, 0.10, 0.15, 0.22, 0.30)  # of the image's area
_OCCLUDERS = 3
_GREY = 128

Image = NDArray[np.uint8]


def _gaussian_noise(image: Image, severity: int, rng: np.random.Generator) -> Image:
    noise = rng.normal(0.0, _NOISE_STD[severity - 1] * 255.0, image.shape)
    return _to_bytes(image + noise)


def _to_bytes(values: NDArray[Any]) -> Image:
    rounded: Image = np.round(np.clip(values, 0.0, 255.0)).astype(np.uint8)
    return rounded


def _blur(image: Image, severity: int, _rng: np.random.Generator) -> Image:
    sigma = _BLUR_SIGMA[severity - 1] * min(image.shape[:2]) / _REFERENCE_SIDE
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), dtype=np.uint8)


def _occlusion(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Three rectangles of equal area, aspect between 1:2 and 2:1; they may overlap."""
    height, width = image.shape[:2]
    area = _OCCLUDED_SHARE[severity - 1] * height * width / _OCCLUDERS
    covered: Image = image.copy()
    for _box in range(_OCCLUDERS):
        aspect = 2.0 ** rng.uniform(-1.0, 1.0)
        box_width = min(width, round((area * aspect) ** 0.5))
        box_height = min(height, round((area / aspect) ** 0.5))
        left = int(rng.integers(0, width - box_width + 1))
        top = int(rng.integers(0, height - box_height + 1))
        covered[top : top + box_height, left : left + box_width] = _GREY
    return covered


def _brightness(image: Image, severity: int, _rng: np.random.Generator) -> Image:
    hsv = cv2.cvtColor(image.astype(np.float32) / 255.0, cv2.COLOR_RGB2HSV)
    hsv[..., 2] = np.clip(hsv[..., 2] + _BRIGHTNESS_SHIFT[severity - 1], 0.0, 1.0)
    rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return _to_bytes(rgb * 255.0)


def _jpeg(image: Image, severity: int, _rng: np.random.Generator) -> Image:
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY[severity - 1]]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), dtype=np.uint8)


_CORRUPTIONS: dict[str, Callable[[Image, int, np.random.Generator], Image]] = {
    "gaussian_noise": _gaussian_noise,
    "blur": _blur,
    "occlusion": _occlusion,
    "brightness": _brightness,
    "jpeg": _jpeg,
}

CORRUPTIONS = tuple(_CORRUPTIONS)


def corrupt(image: Image, name: str, severity: int, seed: int, key: str = "") -> Image:
    """Disturb one image.

    Args:
        image: (height, width, 3) uint8 RGB.
        name: one of ``CORRUPTIONS``.
        severity: 1 (mild) to 5.
        seed, key: the run's seed and the image's name; together they fix what is random.
    Returns:
        A new image of the same shape.
    Raises:
        ConfigError: unknown corruption or severity.
    """
    if name not in _CORRUPTIONS:
        raise ConfigError(f"unknown corruption {name!r}; choose one of {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ConfigError(f"severity is {severity}; it must be 1 to 5")
    stream = [seed, zlib.crc32(key.encode()), CORRUPTIONS.index(name), severity]
    return _CORRUPTIONS[name](image, severity, np.random.default_rng(stream))
