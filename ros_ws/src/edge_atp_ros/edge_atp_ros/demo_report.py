"""What the demo shows: tables at the terminal, an overlay per answer, one contact sheet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from edge_atp_msgs.msg import LatencyBreakdown, PatchMask
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from edge_atp import types
from edge_atp.mask import overlay, unpack_bits
from edge_atp_ros.demo_client import DENSE, PRUNED, Outcome
from edge_atp_ros.images import to_rgb

_STAGES = ("queue_wait", "preprocess", "vision_encode", "prune", "prefill", "decode", "total")
_COLUMNS = 4
_TILE_WIDTH = 480
_GAP = 8
_PAPER = 245


def print_answers(console: Console, outcomes: Sequence[Outcome]) -> None:
    """One row per answer."""
    table = Table(title="answers", title_justify="left")
    for name in ("second", "question", "expected", "mode", "answer", "tokens kept", "ms", ""):
        table.add_column(name, justify="right" if name in ("second", "ms") else "left")
    for outcome in outcomes:
        answer = outcome.answer
        first = outcome.mode == DENSE
        table.add_row(
            f"{outcome.second:.1f}" if answer else "",
            outcome.check.ask if first else "",
            outcome.check.expect if first else "",
            outcome.mode,
            answer.text if answer else "",
            f"{answer.tokens.visual_kept}/{answer.tokens.visual_total}" if answer else "",
            f"{1e3 * answer.latency.total:.1f}" if answer else "",
            "[red]wrong[/red]" if outcome.fault else "[green]ok[/green]",
            end_section=not first,
        )
    console.print(table)


def print_latency(console: Console, outcomes: Sequence[Outcome]) -> None:
    """Median milliseconds of each stage, dense against pruned."""
    dense, pruned = (_medians_ms(outcomes, mode) for mode in (DENSE, PRUNED))
    if not dense or not pruned:
        return
    table = Table(title="latency by stage, median ms", title_justify="left")
    for name in ("stage", "dense", "pruned", "pruned / dense"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage in _STAGES:
        ratio = pruned[stage] / dense[stage] if dense[stage] > 0 else float("nan")
        table.add_row(stage, f"{dense[stage]:.2f}", f"{pruned[stage]:.2f}", f"{ratio:.2f}")
    console.print(table)


def print_picks(console: Console, planner_log: str) -> None:
    """What the planner example would have done."""
    for line in planner_log.splitlines():
        if found := re.search(r"\[planner\]: ((?:pick|hold).*)", line):
            console.print(f"planner: {found[1]}", markup=False)


def write_pictures(outcomes: Sequence[Outcome], folder: Path) -> Path:
    """Write an overlay per answer and the contact sheet; returns the sheet's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    tiles = []
    for number, outcome in enumerate(outcomes):
        picture = _draw(outcome)
        if picture is None:
            continue
        _write(folder / f"{number // 2 + 1:02d}_{outcome.mode}.png", picture)
        if outcome.mode == PRUNED:
            tiles.append(picture)
    sheet = folder / "contact_sheet.png"
    if tiles:
        _write(sheet, contact_sheet(tiles))
    return sheet


def contact_sheet(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pictures side by side, in rows of four.

    Args:
        pictures: (height, width, 3) uint8 RGB each, of any size.
    """
    tiles = [_scaled(picture) for picture in pictures]
    height = max(tile.shape[0] for tile in tiles) + _GAP
    width = _TILE_WIDTH + _GAP
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * height + _GAP, columns * width + _GAP, 3), _PAPER, dtype=np.uint8)
    for number, tile in enumerate(tiles):
        top = number // columns * height + _GAP
        left = number % columns * width + _GAP
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet


def from_message(mask: PatchMask, frame: types.Frame) -> types.PatchMask:
    """The mask of a message, on the frame it belongs to."""
    grid = types.PatchGrid(mask.grid_rows, mask.grid_cols)
    kept = unpack_bits(np.asarray(mask.kept, dtype=np.uint8), grid).reshape(-1)
    roi = mask.roi
    region = types.SourceRegion(roi.x_offset, roi.y_offset, roi.width, roi.height)
    return types.PatchMask(frame, grid, region, kept)


def _draw(outcome: Outcome) -> NDArray[np.uint8] | None:
    answer, masks, frame = outcome.answer, outcome.masks, outcome.frame
    if answer is None or masks is None or frame is None:
        return None
    tokens = answer.tokens
    caption = (
        f"{outcome.check.ask}\n{answer.text}\n"
        f"{tokens.visual_kept} of {tokens.visual_total} visual tokens,"
        f" {1e3 * answer.latency.total:.0f} ms"
    )
    return overlay(from_message(masks.masks[0], types.Frame(to_rgb(frame))), caption)


def _medians_ms(outcomes: Sequence[Outcome], mode: str) -> dict[str, float]:
    latencies: list[LatencyBreakdown] = [
        outcome.answer.latency for outcome in outcomes if outcome.answer and outcome.mode == mode
    ]
    if not latencies:
        return {}
    return {
        stage: 1e3 * float(np.median([getattr(latency, stage) for latency in latencies]))
        for stage in _STAGES
    }


def _scaled(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height = round(picture.shape[0] * _TILE_WIDTH / picture.shape[1])
    return cv2.resize(picture, (_TILE_WIDTH, height), interpolation=cv2.INTER_AREA)


def _write(path: Path, picture: NDArray[np.uint8]) -> None:
    if not cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):
        raise OSError(f"cannot write {path}")
