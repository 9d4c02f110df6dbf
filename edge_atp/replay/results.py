"""Reads answers and masks back from a bag: a replay's result, or a recording of the live node."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import BagError
from edge_atp.mask import unpack_bits
from edge_atp.replay.bags import open_bag, read_messages
from edge_atp.replay.interfaces import ANSWER, MASKS
from edge_atp.types import PatchGrid, SourceRegion, Status


@dataclass(frozen=True)
class RecordedMask:
    """Kept patches of one image. kept: (N,) bool, row-major over ``grid``."""

    camera: str
    grid: PatchGrid
    region: SourceRegion
    kept: NDArray[np.bool_]


@dataclass(frozen=True)
class RecordedAnswer:
    """A final answer and its masks.

    stamp_ns: of the frame it is about. total_s: its latency, 0 where it was not written.
    masks: empty where the bag holds none for it.
    """

    topic: str
    query_id: str
    stamp_ns: int
    status: Status
    error_msg: str
    text: str
    total_s: float
    model_id: str
    method: str
    masks: tuple[RecordedMask, ...] = ()


@dataclass(frozen=True)
class Results:
    """All final answers of a bag in order of time."""

    path: Path
    answers: tuple[RecordedAnswer, ...]


def load_results(path: Path, typestore: Any) -> Results:
    """Read a bag's answers.

    Raises:
        BagError: unreadable, or without answers.
    """
    with open_bag(path, typestore) as reader:
        wanted = [c for c in reader.connections if c.msgtype in (ANSWER, MASKS)]
        messages = list(read_messages(path, reader, wanted))
        topics = sorted({c.topic for c in reader.connections})
    masks = {
        _join_key(connection.topic, message): tuple(map(_mask, message.masks))
        for connection, _, message in messages
        if connection.msgtype == MASKS
    }
    answers = tuple(
        _answer(connection.topic, message, masks.get(_join_key(connection.topic, message), ()))
        for connection, _, message in messages
        if connection.msgtype == ANSWER and message.status != Status.PARTIAL.value
    )
    if not answers:
        raise BagError(f"bag {path} holds no answers ({ANSWER}); its topics: {', '.join(topics)}")
    return Results(path, answers)


def _join_key(topic: str, message: Any) -> tuple[str, str, int, int]:
    """What an answer and its masks have in common: node, question, number and frame."""
    node = topic.rpartition("/")[0]
    return node, message.query_id, int(message.sequence), _stamp_ns(message.header.stamp)


def _answer(topic: str, message: Any, masks: Iterable[RecordedMask]) -> RecordedAnswer:
    return RecordedAnswer(
        topic=topic,
        query_id=message.query_id,
        stamp_ns=_stamp_ns(message.header.stamp),
        status=Status(message.status),
        error_msg=message.error_msg,
        text=message.text,
        total_s=float(message.latency.total),
        model_id=message.model_id,
        method=message.prune_method,
        masks=tuple(masks),
    )


def _mask(message: Any) -> RecordedMask:
    grid = PatchGrid(int(message.grid_rows), int(message.grid_cols))
    roi = message.roi
    return RecordedMask(
        camera=message.camera,
        grid=grid,
        region=SourceRegion(roi.x_offset, roi.y_offset, roi.width, roi.height),
        kept=unpack_bits(np.asarray(message.kept, dtype=np.uint8), grid).reshape(-1),
    )


def _stamp_ns(stamp: Any) -> int:
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)
