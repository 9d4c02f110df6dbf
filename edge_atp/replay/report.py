"""What a replay gave, as one JSON document: every answer with its measured times, and totals.

Also keeps the pictures worth looking at; ``report_html`` shows them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge_atp.errors import BagError
from edge_atp.mask import overlay
from edge_atp.replay.answering import Reply
from edge_atp.replay.messages import to_jpeg
from edge_atp.replay.questions import ReplayQuestion
from edge_atp.replay.recording import Recording
from edge_atp.types import Answer, StageTimes, Status

MAX_PICTURES = 300
_PICTURE_WIDTH = 420
_PICTURE_QUALITY = 80
STAGES = tuple(field.name for field in fields(StageTimes))


@dataclass(frozen=True)
class Picture:
    """The overlay of one answer, as JPEG; ``entry`` is the answer's number in the report."""

    entry: int
    jpeg: bytes


class Report:
    """Collects replies.

    Args:
        run: what was replayed and how; shown as it is.
        questions: those of the replay, in order.
        with_pictures: draw overlays (costs time).
    """

    def __init__(
        self, run: dict[str, Any], questions: Sequence[ReplayQuestion], with_pictures: bool
    ) -> None:
        self.run = run
        self.entries: list[dict[str, Any]] = []
        self.pictures: list[Picture] = []
        self.num_pictures_left_out = 0
        self._questions = tuple(questions)
        self._with_pictures = with_pictures
        self._last_text: dict[str, str] = {}

    def add(self, reply: Reply, recording: Recording) -> None:
        """Add one reply."""
        entry = _entry(reply, recording)
        query_id = entry["query_id"]
        changed = self._last_text.get(query_id) != entry["text"]
        self._last_text[query_id] = entry["text"]
        self.entries.append(entry)
        # Frame after frame looks the same; what a person wants to see is a change or a mistake.
        if self._with_pictures and reply.answer and (changed or reply.right is False):
            if len(self.pictures) < MAX_PICTURES:
                self.pictures.append(Picture(len(self.entries) - 1, _draw(reply.answer)))
            else:
                self.num_pictures_left_out += 1

    def count(self, right: bool) -> int:
        """Answers that were right, or wrong, among those with an expected text."""
        return sum(entry["right"] is right for entry in self.entries)

    def as_json(self) -> dict[str, Any]:
        """The whole report, JSON values only; times in seconds."""
        return {
            "run": self.run,
            "num_answers": len(self.entries),
            "right": self.count(True),
            "wrong": self.count(False),
            "latency_s": self.latency_s(),
            "questions": [self._question(question) for question in self._questions],
            "answers": self.entries,
        }

    def latency_s(self) -> dict[str, dict[str, float]]:
        """Median and 95th percentile of each stage over all answers."""
        answered = [entry["latency_s"] for entry in self.entries if entry["latency_s"]]
        if not answered:
            return {}
        table = {}
        for stage in STAGES:
            p50, p95 = np.percentile([times[stage] for times in answered], [50, 95])
            table[stage] = {"p50": float(p50), "p95": float(p95)}
        return table

    def _question(self, question: ReplayQuestion) -> dict[str, Any]:
        query_id = question.query.query_id
        mine = [entry for entry in self.entries if entry["query_id"] == query_id]
        return {
            "query_id": query_id,
            "ask": question.query.text,
            "expect": question.expect,
            "num_answers": len(mine),
            "right": sum(entry["right"] is True for entry in mine),
            "wrong": sum(entry["right"] is False for entry in mine),
            "texts": dict(Counter(entry["text"] for entry in mine).most_common()),
        }


def write_json(report: Report, path: Path) -> None:
    """Write the report as JSON.

    Raises:
        BagError: the file cannot be written.
    """
    text = json.dumps(report.as_json(), indent=1, ensure_ascii=False) + "\n"
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a report's file, making its folder.

    Raises:
        BagError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BagError(f"cannot write report {path}: {error.strerror}") from error


def _entry(reply: Reply, recording: Recording) -> dict[str, Any]:
    answer = reply.answer
    return {
        "query_id": reply.question.query.query_id,
        "sequence": reply.sequence,
        "second": round((reply.time_ns - recording.start_ns) / 1e9, 6),
        "stamp_ns": reply.newest.stamp_ns,
        "cameras": [image.camera for image in reply.images],
        "text": answer.text if answer else "",
        "expect": reply.question.expect,
        "right": reply.right,
        "status": (answer.status if answer else Status.ERROR).name,
        "error": reply.error,
        "confidence": answer.confidence if answer else None,
        "method": answer.method if answer else "",
        "tokens": asdict(answer.tokens) if answer else {},
        "latency_s": asdict(answer.times) if answer else {},
    }


def _draw(answer: Answer) -> bytes:
    """The overlays of all images of an answer, one below the other."""
    tiles = []
    for mask in answer.masks:
        picture = overlay(mask)
        height = round(picture.shape[0] * _PICTURE_WIDTH / picture.shape[1])
        size = (_PICTURE_WIDTH, height)
        tiles.append(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
    return to_jpeg(np.vstack(tiles), _PICTURE_QUALITY)
