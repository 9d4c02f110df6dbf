"""MMTok: the subset that best covers both the question's tokens and the image's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import ConfigError, ShapeError
from edge_atp.pruning.base import Pruner, as_indices, kept_from_order
from edge_atp.pruning.ops import on_host
from edge_atp.pruning.scratch import scratch, scratch_rows
from edge_atp.pruning.similarity import cosine_cross, scratch_cosines, snap_cosines
from edge_atp.types import Array, Selection, VisualSignals

# Exponents up to which exp neither overflows nor underflows in float32.
SAFE_EXPONENT = 64.0


class FixedPoint(NamedTuple):
    """Integers that a coverage is searched in: their sums are exact whatever their order.

    bits: of the largest column sum.
    tie: units by which rounding of the coverage may part gains that are equal.
    fewest: units of a gain below which its quantisation could decide a rank (1e-5 of float32's
        and 4e-9 of float64's at this size), so that the rest is quantised anew.
    """

    kind: Any
    bits: int
    tie: int
    fewest: int


# float32 entries are as coarse as their 32-bit units (575 columns share a row), and the pass over
# them takes half the time of sums in float64. Rounding in float64 is 1e-15 of a sum.
FIXED_POINT = {
    np.dtype(np.float32): FixedPoint(np.int32, bits=31, tie=0, fewest=1 << 20),
    np.dtype(np.float64): FixedPoint(np.int64, bits=62, tie=1 << 20, fewest=1 << 48),
}

VISUAL_FEATURES = ("patch_features", "image_embeds")


def coverage_order(coverage: Array, num_kept: int) -> list[int]:
    """Greedy facility location: maximise sum_r max over the chosen columns of coverage[r, c].

    Args:
        coverage: (R, N) not negative; row r is something to cover, column c a token.
        num_kept: K in [1, N].
    Returns:
        K column indices in the order chosen, ties to the lowest index.

    The gain of every column is kept up to date: a pick changes it only through the rows that the
    pick covers better than before, about R / t of them at step t, so the whole run costs about
    R N log K rather than R N K. On the host: on a device every step would wait for its argmax.
    """
    return _cover(np.array(on_host(coverage), order="C"), num_kept)


def _cover(coverage: NDArray[Any], num_kept: int) -> list[int]:
    """``coverage_order`` in the coverage's own memory.

    Gains only fall. Once the best is too few units to rank by, what the picks leave uncovered is
    quantised anew: at most 12 times in all the range of float32, and not in the first 64 of 576.
    """
    order: list[int] = []
    while True:
        units = _quantised(coverage)
        if units is None:  # the others add nothing
            rest = sorted(set(range(coverage.shape[1])) - set(order))
            return order + rest[: num_kept - len(order)]
        picks = _pick(units, FIXED_POINT[coverage.dtype], order, num_kept - len(order))
        order += picks
        if len(order) == num_kept:
            return order
        coverage -= coverage[:, picks].max(axis=1, keepdims=True)
        np.maximum(coverage, 0.0, out=coverage)


def _quantised(coverage: NDArray[Any]) -> NDArray[Any] | None:
    """The coverage, which is scaled in place, in whole units; None where nothing is covered."""
    fixed = FIXED_POINT[coverage.dtype]
    largest = float((np.ones(len(coverage), coverage.dtype) @ coverage).max())
    if largest == 0.0:
        return None
    # Headroom: rounding adds half a unit to an entry, and the sum itself is rounded.
    coverage *= coverage.dtype.type((2.0**fixed.bits - len(coverage)) * (1 - 2.0**-14) / largest)
    units = scratch("units", coverage.shape, fixed.kind)
    np.rint(coverage, out=units, casting="unsafe")
    return units


def _pick(units: NDArray[Any], fixed: FixedPoint, taken: list[int], num_picks: int) -> list[int]:
    """Greedy picks from an (R, N) coverage in units, until a gain is too few of them."""
    num = units.shape[1]
    gains = units.sum(axis=0, dtype=fixed.kind)
    never = np.iinfo(fixed.kind).min // 2
    gains[taken] = never
    best = np.zeros(len(units), fixed.kind)
    gathered = scratch_rows("gathered_rows", num, fixed.kind)
    lost = np.empty(num, fixed.kind)
    picks: list[int] = []
    while True:
        chosen = int(gains.argmax())
        if picks and gains[chosen] < fixed.fewest:
            return picks
        if fixed.tie:
            chosen = int((gains >= gains[chosen] - fixed.tie).argmax())
        picks.append(chosen)
        if len(picks) == num_picks:
            return picks
        column = units[:, chosen]
        changed = (column > best).nonzero()[0]
        before, after = best[changed], column[changed]
        for start in range(0, len(changed), len(gathered)):
            part = slice(start, start + len(gathered))
            block = gathered[: len(changed[part])]
            units.take(changed[part], axis=0, out=block, mode="clip")
            # What a column loses of a row: the part of it between the old best and the new.
            if len(picks) > 1:  # before the first pick every best is 0
                np.maximum(block, before[part, None], out=block)
            np.minimum(block, after[part, None], out=block)
            gains -= np.add.reduce(block, axis=0, dtype=fixed.kind, out=lost)
        gains += before.sum(dtype=fixed.kind)
        best[changed] = after
        gains[chosen] = never  # and stays it: what it covers is never below the best


@dataclass(frozen=True)
class Method(Pruner):
    """Coverage of M text tokens and N visual tokens.

    text_temperature, visual_temperature: softmax temperatures of the two similarities.
    visual_weight: weight of covering the image against covering the question.

    The question is compared with the projected tokens. The image is covered in the space of the
    patch features, as in the published code, or of the projected tokens where the encoder exposes
    no patch features.
    Source: Dong et al., "MMTok: Multimodal Coverage Maximization for Efficient Inference of
    VLMs", sec. 3. Each row is a softmax over the N tokens, divided by the number of its rows.
    """

    needs: ClassVar[tuple[str, ...]] = ("image_embeds", "text_tokens")

    text_temperature: float = 0.02
    visual_temperature: float = 0.2
    visual_weight: float = 0.5

    def __post_init__(self) -> None:
        for name in ("text_temperature", "visual_temperature"):
            if not getattr(self, name) > 0.0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.visual_weight < 0.0:
            raise ConfigError(f"visual_weight is {self.visual_weight}; it must be 0 or more")

    @property
    def needs_one_of(self) -> tuple[tuple[str, ...], ...]:
        """Space in which the image is covered."""
        return (VISUAL_FEATURES,)

    def _select(self, signals: VisualSignals, num_kept: int, /) -> Selection:
        visual: Array = signals.image_embeds
        features: Array = getattr(signals, self._first(signals, VISUAL_FEATURES))
        coverage = self._coverage(visual, signals.text_tokens, features)
        return kept_from_order(as_indices(_cover(coverage, num_kept), visual), None)

    def _coverage(self, visual: Array, text: Array, features: Array) -> NDArray[Any]:
        """(M + N, N) what each token (column) covers of each text and visual token (row)."""
        if visual.shape[1] != text.shape[1]:
            raise ShapeError(
                f"image_embeds are {visual.shape[1]} wide and text_tokens {text.shape[1]}; both"
                " must live in the language model's embedding space"
            )
        num_text, num = text.shape[0], features.shape[0]
        # In one array from the start: a second N x N one costs as much as the arithmetic on it.
        coverage, _ = scratch_cosines(features, rows_above=num_text)
        snap_cosines(coverage[num_text:])
        # Exact: at this temperature float32's errors of 3e-8 would be 1.5e-6 of a coverage, more
        # than parts the two best tokens of one selection in twenty.
        text_rows = on_host(cosine_cross(text, visual, exact=True))
        _soften(text_rows, self.text_temperature, 1.0 / num_text)
        coverage[:num_text] = text_rows
        _soften(coverage[num_text:], self.visual_temperature, self.visual_weight / num)
        return coverage


def _soften(cosines: NDArray[Any], temperature: float, weight: float) -> None:
    """Write ``weight * softmax(cosines / temperature)`` over the rows: one array, few passes."""
    if temperature * SAFE_EXPONENT < 1.0:
        cosines -= cosines.max(axis=1, keepdims=True)
    cosines *= 1.0 / temperature
    np.exp(cosines, out=cosines)
    cosines *= weight / cosines.sum(axis=1, keepdims=True)
