"""MMTok: the subset that best covers both the question's tokens and the image's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import ConfigError, ShapeError
from edge_atp.pruning.base import Pruner, as_indices, kept_from_order
from edge_atp.pruning.ops import on_host
from edge_atp.pruning.scratch import scratch
from edge_atp.pruning.similarity import cosine_cross, scratch_cosines
from edge_atp.types import Array, Selection, VisualSignals

# Rows updated at once: a block of 576 columns stays in the second-level cache, and its memory is
# not asked of the system, which costs as much as the arithmetic.
ROW_BLOCK = 128

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


def _cover(left: NDArray[Any], num_kept: int) -> list[int]:
    """``coverage_order`` in the coverage's own memory: what each column still adds to each row."""
    gains = left.sum(axis=0, dtype=np.float64)
    block_shape = (ROW_BLOCK, left.shape[1])
    gathered, lost = (scratch(name, block_shape, left.dtype) for name in ("gathered", "lost"))
    order: list[int] = []
    while True:
        chosen = int(gains.argmax())
        order.append(chosen)
        if len(order) == num_kept:
            return order
        gain = left[:, chosen].copy()
        changed = np.flatnonzero(gain)
        for start in range(0, len(changed), ROW_BLOCK):
            block = changed[start : start + ROW_BLOCK]
            rows = np.take(left, block, axis=0, out=gathered[: len(block)], mode="clip")
            taken = np.minimum(rows, gain[block, None], out=lost[: len(block)])
            gains -= taken.sum(axis=0, dtype=np.float64)
            left[block] = np.subtract(rows, taken, out=rows)
        gains[chosen] = -np.inf


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
        text_rows = on_host(cosine_cross(text, visual))
        _soften(text_rows, self.text_temperature, 1.0 / num_text)
        coverage[:num_text] = text_rows
        _soften(coverage[num_text:], self.visual_temperature, self.visual_weight / num)
        return coverage


def _soften(cosines: NDArray[Any], temperature: float, weight: float) -> None:
    """Write ``weight * softmax(cosines / temperature)`` over the rows: one array, few passes."""
    cosines -= cosines.max(axis=1, keepdims=True)
    cosines /= temperature
    np.exp(cosines, out=cosines)
    cosines *= weight / cosines.sum(axis=1, keepdims=True)
