"""Images of several cameras that were taken at the same time. Pure: stamps in, choice out."""

from __future__ import annotations

from collections.abc import Sequence


def match(stamps: Sequence[Sequence[int]], tolerance_ns: int) -> tuple[int, ...] | None:
    """The newest images, one of each camera, whose stamps lie within the tolerance.

    Goes back through the images of the camera that lags behind; beside each of them stands the
    nearest of every other camera.

    Args:
        stamps: of each camera's images, in any order, nanoseconds.
        tolerance_ns: largest difference between any two stamps of the choice.
    Returns:
        The index of each camera's image; None if no images match.
    """
    if not all(stamps):
        return None
    lagging = min(range(len(stamps)), key=lambda camera: max(stamps[camera]))
    for reference in sorted(stamps[lagging], reverse=True):
        choice = tuple(_nearest(candidates, reference) for candidates in stamps)
        chosen = [candidates[i] for candidates, i in zip(stamps, choice, strict=True)]
        if max(chosen) - min(chosen) <= tolerance_ns:
            return choice
    return None


def _nearest(stamps: Sequence[int], reference: int) -> int:
    """Index of the stamp nearest to ``reference``; of equally near ones the newer."""
    return min(range(len(stamps)), key=lambda i: (abs(stamps[i] - reference), -stamps[i]))
