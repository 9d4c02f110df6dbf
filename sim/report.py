"""What a run of the cell shows: a table at the terminal, a contact sheet, a film."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from edge_atp_ros.demo_report import contact_sheet, from_message
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge_atp.mask import overlay
from edge_atp.types import Frame
from sim.watch import DONE, FAILED, PLACING, OrderRecord, Shot

_BAR_PX, _DARK = 80, 24
_GREY = 200
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FILM_SIZE = (320, 240)
_FILM_FRAME_S = 0.1


def print_orders(console: Console, records: Sequence[OrderRecord]) -> None:
    """One row per order, and the verdict."""
    table = Table(title="orders", title_justify="left")
    for name in ("order", "outcome", "", "answers", "least confident", "sim s", "in truth"):
        table.add_column(name, justify="right" if name in ("answers", "sim s") else "left")
    for record in records:
        least = min((a.reply.confidence for a in record.questions), default=float("nan"))
        verdict = "[green]right[/green]" if record.right else "[red]wrong[/red]"
        table.add_row(
            escape(record.order),
            record.outcome or "not ended",
            escape(record.detail),
            str(len(record.questions)),
            f"{least:.2f}",
            f"{record.ended_s - record.begun_s:.1f}" if record.outcome else "",
            verdict if record.outcome == DONE else "not done",
        )
    console.print(table)
    right = sum(record.right for record in records)
    wrong = sum(record.outcome == DONE and not record.right for record in records)
    console.print(
        f"{len(records)} orders: {right} right, {wrong} wrong, "
        f"{len(records) - right - wrong} not done"
    )


def write_sheet(records: Sequence[OrderRecord], path: Path) -> bool:
    """One row per order: where the item was seen, that the slot is free, in the gripper, the end.

    Returns:
        False if there is nothing to draw.
    """
    tiles = [tile for record in records for tile in _row(record)]
    if not tiles:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = cv2.cvtColor(contact_sheet(tiles), cv2.COLOR_RGB2BGR)
    if not cv2.imwrite(str(path), sheet):
        raise OSError(f"cannot write {path}")
    return True


def _row(record: OrderRecord) -> list[NDArray[np.uint8]]:
    """Four tiles of an order; what is missing is grey."""
    tiles = [_answer(record, "where is"), _answer(record, "is slot")]
    for kind in ((PLACING,), (DONE, FAILED)):
        shot = next((s for s in record.shots if s[0].startswith(kind)), None)
        tiles.append(_picture(shot[1], shot[0]) if shot else None)
    height = max((tile.shape[0] for tile in tiles if tile is not None), default=0)
    if not height:
        return []
    blank = np.full((height, 640, 3), _GREY, dtype=np.uint8)
    return [blank if tile is None else tile for tile in tiles]


def _answer(record: OrderRecord, start: str) -> NDArray[np.uint8] | None:
    """The first answer to a question that begins so, on its picture: bright is what was kept."""
    for asked in record.questions:
        masks = asked.reply.masks
        if asked.question.startswith(start) and asked.image is not None and masks is not None:
            tokens, sure = asked.reply.answer.tokens, asked.reply.confidence
            caption = (
                f"{asked.question}\n{asked.reply.text}\n{tokens.visual_kept} of"
                f" {tokens.visual_total} visual tokens, confidence {sure:.2f}"
            )
            return overlay(from_message(masks.masks[0], Frame(asked.image)), caption)
    return None


def write_film(shots: Sequence[Shot], folder: Path) -> Path | None:
    """run.gif, or run.mp4 with an OpenCV that writes no GIF (before 4.11); None without shots."""
    frames = [
        cv2.cvtColor(
            cv2.resize(shot.image, _FILM_SIZE, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR
        )
        for shot in shots
    ]
    if not frames:
        return None
    if hasattr(cv2, "imwriteanimation"):
        path = folder / "run.gif"
        film = cv2.Animation()
        film.frames = frames
        film.durations = np.full(len(frames), round(1000 * _FILM_FRAME_S), dtype=np.int32)
        written = cv2.imwriteanimation(str(path), film)
    else:
        path = folder / "run.mp4"
        codec = cv2.VideoWriter_fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(path), codec, 1 / _FILM_FRAME_S, _FILM_SIZE)
        written = writer.isOpened()
        for frame in frames:
            writer.write(frame)
        writer.release()
    if not written:
        raise OSError(f"cannot write {path}")
    return path


def _picture(shot: Shot, caption: str) -> NDArray[np.uint8]:
    """A picture as the camera took it, with what the planner said then."""
    bar = np.full((_BAR_PX, shot.image.shape[1], 3), _DARK, dtype=np.uint8)
    for number, line in enumerate((caption, f"{shot.second:.1f} s")):
        origin = (8, 22 + 24 * number)
        cv2.putText(bar, line, origin, _FONT, 0.55, (255, 255, 255), 1, cv2.LINE_AA)
    return np.vstack([shot.image, bar])
