"""MMTok: the subset that best covers both the question's tokens and the image's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace

from edge_atp.errors import ConfigError, ShapeError
from edge_atp.pruning.base import Pruner, as_indices, kept_from_order
from edge_atp.pruning.ops import softmax
from edge_atp.pruning.similarity import cosine_cross, cosine_matrix
from edge_atp.types import Array, Selection, VisualSignals

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
    R N log K rather than R N K.
    """
    xp = array_namespace(coverage)
    left = xp.asarray(coverage, copy=True)  # what each column still adds to each row
    gains = xp.sum(left, axis=0, dtype=xp.float64)
    order: list[int] = []
    while True:
        chosen = int(xp.argmax(gains))
        order.append(chosen)
        if len(order) == num_kept:
            return order
        changed = xp.nonzero(left[:, chosen] > 0)[0]
        rows = xp.take(left, changed, axis=0)
        lost = xp.minimum(rows, rows[:, chosen][:, None])
        gains = gains - xp.sum(lost, axis=0, dtype=xp.float64)
        gains[chosen] = float("-inf")
        rows -= lost
        left[changed, :] = rows


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
        return kept_from_order(as_indices(coverage_order(coverage, num_kept), visual), None)

    def _coverage(self, visual: Array, text: Array, features: Array) -> Array:
        """(M + N, N) what each token (column) covers of each text and visual token (row)."""
        if visual.shape[1] != text.shape[1]:
            raise ShapeError(
                f"image_embeds are {visual.shape[1]} wide and text_tokens {text.shape[1]}; both"
                " must live in the language model's embedding space"
            )
        xp = array_namespace(visual)
        # In place: a fresh N x N array costs as much as the arithmetic on it.
        text_rows, visual_rows = cosine_cross(text, visual), cosine_matrix(features)
        text_rows /= self.text_temperature
        visual_rows /= self.visual_temperature
        text_rows, visual_rows = softmax(text_rows), softmax(visual_rows)
        text_rows /= text.shape[0]
        visual_rows *= self.visual_weight / visual.shape[0]
        return xp.concat([xp.astype(text_rows, visual_rows.dtype), visual_rows], axis=0)
