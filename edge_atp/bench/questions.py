"""What is asked while time is taken: short answers and captions, measured apart.

A question file has one question a line; ``caption:`` before it marks one with a long answer,
``#`` begins a comment:

    where is the red box?
    caption: describe the scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import ConfigError, ImageError

SHORT, CAPTION = "short", "caption"
KINDS = (SHORT, CAPTION)
# Longest answers, tokens. A short answer of the default model has one to five.
DEFAULT_TOKENS = {SHORT: 8, CAPTION: 64}


@dataclass(frozen=True)
class Question:
    """A question and the kind of answer it asks for, "short" or "caption"."""

    text: str
    kind: str = SHORT


BUILT_IN = (
    Question("where is the red box?"),
    Question("what is the gripper holding?"),
    Question("describe the scene.", CAPTION),
)


def read_questions(path: Path) -> tuple[Question, ...]:
    """Read a question file.

    Raises:
        ConfigError: it cannot be read, or holds no question.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--questions {path}: cannot be read ({error})") from error
    found = []
    for line in lines:
        text = line.partition("#")[0].strip()
        head, colon, rest = text.partition(":")
        kind = head.strip().lower()
        if colon and kind in KINDS and rest.strip():
            found.append(Question(rest.strip(), kind))
        elif text:
            found.append(Question(text))
    if not found:
        raise ConfigError(f"--questions {path}: holds no question; write one a line")
    return tuple(found)


def read_pictures(paths: Sequence[Path]) -> list[NDArray[np.uint8]]:
    """Images as (height, width, 3) uint8 RGB; a drawn one where none is given.

    Raises:
        ImageError: a file cannot be decoded.
    """
    pictures = []
    for path in paths:
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if picture is None:
            raise ImageError(f"--image {path} is not an image that can be decoded")
        pictures.append(np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8))
    return pictures or [drawn_picture()]


def drawn_picture(width: int = 640, height: int = 480) -> NDArray[np.uint8]:
    """Boxes of several colours on a textured ground; the same on every machine."""
    rng = np.random.default_rng(0)
    picture = rng.normal(150, 12, (height, width, 3)).clip(0, 255).astype(np.uint8)
    colours = ((200, 40, 40), (40, 160, 60), (40, 70, 200), (220, 190, 40), (30, 30, 30))
    for number, colour in enumerate(colours):
        left, top = width * (2 * number + 1) // 12, height * (1 + number % 3) // 5
        picture[top : top + height // 6, left : left + width // 9] = colour
    return picture
