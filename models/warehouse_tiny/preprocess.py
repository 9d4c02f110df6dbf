"""Image -> the 224x224 square the model sees: shortest edge to 224, centre crop, no antialias gap.

The same rule as the robot runtime: area interpolation when shrinking, bilinear when enlarging.
"""

from __future__ import annotations

import numpy as np

from models.warehouse_tiny.vocabulary import IMAGE_SIZE

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def to_model_square(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (224, 224, 3) uint8."""
    import cv2

    height, width = image.shape[:2]
    if height == width == IMAGE_SIZE:
        return image
    scale = IMAGE_SIZE / min(height, width)
    size = (max(IMAGE_SIZE, round(width * scale)), max(IMAGE_SIZE, round(height * scale)))
    mode = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = np.asarray(cv2.resize(image, size, interpolation=mode))
    top, left = (size[1] - IMAGE_SIZE) // 2, (size[0] - IMAGE_SIZE) // 2
    return resized[top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]
