"""A sheet of scenes with a question, its answer and its target patches, to look at.

Run: ``python -m models.warehouse_tiny.preview --split shifted --out out/preview.png``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from models.warehouse_tiny import vocabulary as v
from models.warehouse_tiny.coverage import patch_coverage
from models.warehouse_tiny.questions import Question, questions_for
from models.warehouse_tiny.render import SceneRenderer
from models.warehouse_tiny.scene import sample_scene

_CELL = 336
_CAPTION = 44


def draw_cell(image: np.ndarray, question: Question) -> np.ndarray:
    """(336 + 44, 336, 3) uint8: the picture, patches outside the target dimmed, and the text."""
    size = (_CELL, _CELL)
    mask = question.patch_mask.reshape(v.GRID, v.GRID).astype(np.uint8)
    mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)[..., None].astype(bool)
    picture = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    if question.patch_mask.any():
        picture = np.where(mask, picture, picture // 2)
    caption = np.full((_CAPTION, _CELL, 3), 255, np.uint8)
    for line, text in enumerate((question.text, question.answer)):
        place = (4, 16 + 20 * line)
        cv2.putText(caption, text[:58], place, cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1)
    return np.concatenate([np.asarray(picture, np.uint8), caption])


def preview(split: str, rows: int, columns: int, first_seed: int = 0) -> np.ndarray:
    """RGB sheet of ``rows`` x ``columns`` scenes, one question family after the other."""
    renderer = SceneRenderer(max_width=v.IMAGE_SIZE, max_height=v.IMAGE_SIZE)
    cells = []
    for index in range(rows * columns):
        seed = first_seed + index
        state = sample_scene(split, seed)
        frame = renderer.render(state)
        questions = questions_for(state, patch_coverage(frame.entities), split, seed)
        cells.append(draw_cell(frame.image, questions[index % len(questions)]))
    renderer.close()
    lines = [np.concatenate(cells[r * columns : (r + 1) * columns], 1) for r in range(rows)]
    return np.concatenate(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", choices=v.SPLITS, default="train")
    parser.add_argument("--rows", type=int, default=3)
    parser.add_argument("--columns", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/warehouse_tiny/preview.png"))
    arguments = parser.parse_args()
    sheet = preview(arguments.split, arguments.rows, arguments.columns, arguments.seed)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(arguments.out), sheet[..., ::-1])
    print(arguments.out)


if __name__ == "__main__":
    main()
