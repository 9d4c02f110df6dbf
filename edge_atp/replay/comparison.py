"""What changed between two results. Pure: no files, no printing.

Answers are paired by topic, question and the stamp of the frame; several answers to one question
about one frame pair in their order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from edge_atp.errors import BagError, ConfigError
from edge_atp.replay.results import RecordedAnswer, RecordedMask, Results

MISSING, ADDED = "missing", "added"
STATUS, TEXT, MASK, LATENCY = "status", "text", "mask", "latency"
_Key = tuple[str, str, int, int]


@dataclass(frozen=True)
class Tolerance:
    """What counts as equal.

    mask: least Jaccard overlap of two masks, [0, 1].
    latency: largest ratio of the median latencies of a question, after / before; None: any.
    unpaired: answers that only one of the results has are accepted.
    """

    mask: float = 1.0
    latency: float | None = None
    unpaired: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.mask <= 1.0:
            raise ConfigError(f"tolerance-mask is {self.mask:g}; it must be in [0, 1]")
        if self.latency is not None and not self.latency > 0.0:
            raise ConfigError(f"tolerance-latency is {self.latency:g}; it must be above 0")


@dataclass(frozen=True)
class Difference:
    """One thing beyond the tolerance.

    stamp_ns: of the frame; None where it is about all of a question's answers.
    """

    kind: str
    topic: str
    query_id: str
    stamp_ns: int | None
    before: str
    after: str


@dataclass(frozen=True)
class LatencyChange:
    """Median total latency of one question, seconds, in both results."""

    query_id: str
    before_s: float
    after_s: float


@dataclass(frozen=True)
class Comparison:
    """The outcome.

    differences: those beyond the tolerance.
    overlaps: Jaccard overlap of every pair of masks that could be compared.
    latencies: questions with latencies on both sides.
    notes: what explains differences without being one, as another model.
    """

    num_before: int
    num_after: int
    num_paired: int
    differences: tuple[Difference, ...]
    overlaps: tuple[float, ...]
    latencies: tuple[LatencyChange, ...]
    notes: tuple[str, ...]


def compare(before: Results, after: Results, tolerance: Tolerance) -> Comparison:
    """Compare a result with its reference.

    Raises:
        BagError: latencies are to be compared and a result holds none.
    """
    old, new = _by_key(before.answers), _by_key(after.answers)
    pairs = [(old[key], new[key]) for key in old if key in new]
    differences: list[Difference] = []
    if not tolerance.unpaired:
        differences += [_unpaired(MISSING, old[key]) for key in old if key not in new]
        differences += [_unpaired(ADDED, new[key]) for key in new if key not in old]
    overlaps: list[float] = []
    for first, second in pairs:
        differences += _changes(first, second, tolerance, overlaps)
    differences.sort(key=lambda difference: difference.stamp_ns or 0)
    latencies = tuple(_latencies(pairs))
    if tolerance.latency is not None:
        differences += _slower(latencies, pairs, tolerance.latency)
    return Comparison(
        num_before=len(before.answers),
        num_after=len(after.answers),
        num_paired=len(pairs),
        differences=tuple(differences),
        overlaps=tuple(overlaps),
        latencies=latencies,
        notes=tuple(_notes(before, after)),
    )


def jaccard(first: RecordedMask, second: RecordedMask) -> float:
    """Patches kept in both / patches kept in either; 1 if both are empty, 0 on other geometry."""
    if _geometry(first) != _geometry(second):
        return 0.0
    union = int(np.count_nonzero(first.kept | second.kept))
    return int(np.count_nonzero(first.kept & second.kept)) / union if union else 1.0


def _by_key(answers: Sequence[RecordedAnswer]) -> dict[_Key, RecordedAnswer]:
    counts: dict[tuple[str, str, int], int] = defaultdict(int)
    keyed: dict[_Key, RecordedAnswer] = {}
    for answer in answers:
        key = (answer.topic, answer.query_id, answer.stamp_ns)
        numbered = (*key, counts[key])
        keyed[numbered] = answer
        counts[key] += 1
    return keyed


def _unpaired(kind: str, answer: RecordedAnswer) -> Difference:
    texts = (answer.text, "") if kind == MISSING else ("", answer.text)
    return _difference(kind, answer, *texts)


def _changes(
    first: RecordedAnswer,
    second: RecordedAnswer,
    tolerance: Tolerance,
    overlaps: list[float],
) -> Iterator[Difference]:
    if first.status is not second.status:
        before, after = (_status_text(answer) for answer in (first, second))
        yield _difference(STATUS, first, before, after)
    if first.text != second.text:
        yield _difference(TEXT, first, first.text, second.text)
    if len(first.masks) != len(second.masks):
        before, after = (f"{len(answer.masks)} masks" for answer in (first, second))
        yield _difference(MASK, first, before, after)
        return
    for one, other in zip(first.masks, second.masks, strict=True):
        overlap = jaccard(one, other)
        overlaps.append(overlap)
        if overlap < tolerance.mask:
            yield _difference(MASK, first, *_mask_texts(one, other, overlap))


def _difference(kind: str, answer: RecordedAnswer, before: str, after: str) -> Difference:
    return Difference(kind, answer.topic, answer.query_id, answer.stamp_ns, before, after)


def _status_text(answer: RecordedAnswer) -> str:
    return f"{answer.status.name} {answer.error_msg}".strip()


def _mask_texts(first: RecordedMask, second: RecordedMask, overlap: float) -> tuple[str, str]:
    if _geometry(first) != _geometry(second):
        return _geometry(first), _geometry(second)
    before, after = (f"{np.count_nonzero(mask.kept)} kept" for mask in (first, second))
    return f"{first.camera}: {before}", f"{after}, overlap {overlap:.3f}"


def _geometry(mask: RecordedMask) -> str:
    region = mask.region
    return (
        f"{mask.camera}: {mask.grid.rows}x{mask.grid.cols} patches over"
        f" {region.width}x{region.height}+{region.x}+{region.y} px"
    )


def _latencies(
    pairs: Sequence[tuple[RecordedAnswer, RecordedAnswer]],
) -> Iterator[LatencyChange]:
    seconds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for first, second in pairs:
        if first.total_s > 0 and second.total_s > 0:
            seconds[first.query_id].append((first.total_s, second.total_s))
    for query_id, both in seconds.items():
        before, after = zip(*both, strict=True)
        yield LatencyChange(query_id, median(before), median(after))


def _slower(
    latencies: Sequence[LatencyChange],
    pairs: Sequence[tuple[RecordedAnswer, RecordedAnswer]],
    limit: float,
) -> Iterator[Difference]:
    if not latencies:
        raise BagError(
            "tolerance-latency is given, but no pair of answers has latencies on both sides; a"
            " replay writes them with --timings"
        )
    topics = {first.query_id: first.topic for first, _ in pairs}
    for change in latencies:
        if change.after_s > limit * change.before_s:
            yield Difference(
                LATENCY,
                topics[change.query_id],
                change.query_id,
                None,
                f"{1e3 * change.before_s:.1f} ms",
                f"{1e3 * change.after_s:.1f} ms, x{change.after_s / change.before_s:.2f}",
            )


def _notes(before: Results, after: Results) -> Iterator[str]:
    for name, label in (("model_id", "model"), ("method", "pruning method")):
        # An answer that is an error names no method.
        old, new = (
            sorted({str(getattr(answer, name)) for answer in results.answers} - {""})
            for results in (before, after)
        )
        if old != new:
            yield f"{label}: {', '.join(old) or 'none'} -> {', '.join(new) or 'none'}"
