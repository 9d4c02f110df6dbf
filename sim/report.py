"""What a run of the cell shows: a table at the terminal, a contact sheet, a film."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from edge_atp_ros.demo_report import contact_sheet
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sim.watch import DONE, OrderRecord, Shot

_BAR_PX = 44
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FILM_SIZE = (320, 240)
_FILM_FRAME_S = 0.1


def print_orders(console: Console, records: Sequence[OrderRecord]) -> None:
    """One row per order, and the verdict."""
    table = Table(title="orders", title_justify="left")
    for name in ("order", "outcome", "", "answers", "least confident", "sim s", "in truth"):
        table.add_column(name, justify="right" if name in ("answers", "sim s") else "left")
    for record in records:
        least = min((reply.confidence for reply in record.questions), default=float("nan"))
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
    """The picture at each event, captioned; False if there is none."""
    tiles = [
        _captioned(shot.image, f"{shot.second:.1f} s", caption)
        for record in records
        for caption, shot in record.shots
    ]
    if not tiles:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = cv2.cvtColor(contact_sheet(tiles), cv2.COLOR_RGB2BGR)
    if not cv2.imwrite(str(path), sheet):
        raise OSError(f"cannot write {path}")
    return True


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


def _captioned(image: NDArray[np.uint8], *lines: str) -> NDArray[np.uint8]:
    bar = np.full((_BAR_PX, image.shape[1], 3), 255, dtype=np.uint8)
    for number, line in enumerate(lines):
        cv2.putText(bar, line, (6, 17 + 19 * number), _FONT, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([image, bar])
