"""Raw answers on disk as they come: one JSON line per finished piece of work, resumable.

The first line identifies the run (model, data set, arms, seed); resuming another run is refused.
A line cut short by a crash is dropped and its work done again. Scores are not stored: they follow
from the answers and the data set.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from edge_atp.errors import DatasetError


@dataclass(frozen=True)
class ArmAnswer:
    """One arm's answer to one question.

    confidence: of the answer, [0, 1]; None where there is none.
    num_kept: visual tokens the language model saw.
    target_kept: share of the target's patches kept; None without a target.
    latency_s: preprocess + encode + select + prefill + decode, seconds.
    """

    answer: str
    confidence: float | None
    num_kept: int
    target_kept: float | None
    latency_s: float


@dataclass(frozen=True)
class Record:
    """All arms' answers to one question (by its line) under one condition."""

    line: int
    condition: str
    arms: dict[str, ArmAnswer]


@dataclass(frozen=True)
class FinishedTask:
    """What one task produced; ``key`` identifies the task."""

    key: str
    records: tuple[Record, ...]


class RecordFile:
    """Appends finished tasks to a JSONL file.

    Args:
        path: the file.
        run: what identifies the run, JSON values only.
        resume: keep what an earlier run of the same identity wrote; otherwise start anew.
    Raises:
        DatasetError: with ``resume``, the file belongs to another run or is damaged.
    """

    def __init__(self, path: Path, run: dict[str, Any], resume: bool = False) -> None:
        self.finished: list[FinishedTask] = []
        run = json.loads(json.dumps(run))  # as it reads back: tuples are lists
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume and path.exists():
            end, self.finished = _read_same_run(path, run)
            with path.open("r+b") as file:
                file.truncate(end)
            self._file = path.open("a", encoding="utf-8")
        else:
            self._file = path.open("w", encoding="utf-8")
        if self._file.tell() == 0:
            self._write({"run": run})

    def append(self, task: FinishedTask) -> None:
        """Write one task's records and push them to the operating system."""
        self.finished.append(task)
        self._write(asdict(task))

    @property
    def records(self) -> Iterator[Record]:
        """Every record, in the order in which tasks finished."""
        return (record for task in self.finished for record in task.records)

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry, ensure_ascii=False, separators=(",", ":")) + "\n")
        self._file.flush()


def read_records(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """What identifies an earlier run, and its records.

    Raises:
        DatasetError: there is no such file, or it is damaged.
    """
    try:
        _, run, tasks = _read(path)
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}; give the --out of an evaluation") from error
    return run, [record for task in tasks for record in task.records]


def _read_same_run(path: Path, run: dict[str, Any]) -> tuple[int, list[FinishedTask]]:
    end, found, tasks = _read(path)
    if end and found != run:
        differing = [name for name in run if found.get(name) != run[name]]
        raise DatasetError(
            f"{path} belongs to another run (differs in {', '.join(differing) or 'its fields'});"
            " resume with the same options, or choose another --out"
        )
    return end, tasks


def _read(path: Path) -> tuple[int, dict[str, Any], list[FinishedTask]]:
    """Bytes up to the last complete line, what identifies the run, and the finished tasks."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    lines = content[:end].split(b"\n")[:-1]
    if not lines:
        return 0, {}, []
    run = _parse(path, 1, lines[0]).get("run")
    tasks = [_task(path, number, line) for number, line in enumerate(lines[1:], start=2)]
    return end, run if isinstance(run, dict) else {}, tasks


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise DatasetError(f"{path}:{number}: not JSON ({error}); start without --resume") from None
    if not isinstance(entry, dict):
        raise DatasetError(f"{path}:{number}: expected an object; start without --resume")
    return entry


def _task(path: Path, number: int, line: bytes) -> FinishedTask:
    entry = _parse(path, number, line)
    try:
        records = tuple(
            Record(
                line=record["line"],
                condition=record["condition"],
                arms={name: ArmAnswer(**values) for name, values in record["arms"].items()},
            )
            for record in entry["records"]
        )
        return FinishedTask(str(entry["key"]), records)
    except (KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{path}:{number}: no record of this version ({error}); start without --resume"
        ) from error
