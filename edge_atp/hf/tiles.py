"""Any-resolution images: which packed token is which patch of which tile.

The model packs tiles itself (stitching, removing padding, adding a newline token to each row).
Packing a tensor of token numbers with the model's own function tells where each token ends up, so
nothing of it is written down here a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edge_atp.errors import BackendUnavailableError
from edge_atp.hf.family import ImageLayout, Tensor, TokenGroup
from edge_atp.types import PatchGrid

# Number that marks a newline token among packed token numbers.
NEWLINE = -1

# Per-image (tiles, n, C) values and the (C,) newline value -> per-image (packed, C) values.
Pack = Callable[[list[Tensor], Tensor], list[Tensor]]


def packed_features(output: Any) -> Any:
    """What a vision call hands to the language model: (n, H) per image, or (B, n, H)."""
    features = getattr(output, "pooler_output", None)
    if features is None:
        raise BackendUnavailableError(
            "the model's vision call returns no pooler_output; this family needs transformers 5 or"
            " newer"
        )
    return features


def packed_numbers(pack: Pack, tiles_of_image: list[int], tokens: int) -> list[Tensor]:
    """Per image, the (packed,) int64 projector-token numbers in packed order, NEWLINE between."""
    # float64 holds every integer up to 2**53, so numbers survive a packing made for features.
    numbers = torch.arange(sum(tiles_of_image) * tokens, dtype=torch.float64)
    per_image = numbers.view(-1, tokens, 1).split(tiles_of_image)
    newline = torch.full((1,), float(NEWLINE), dtype=torch.float64)
    return [image[:, 0].long() for image in pack(list(per_image), newline)]


def image_layout(numbers: Tensor, tokens: int, per_tile: bool) -> ImageLayout:
    """Budget groups of one image; tokens that packing removed belong to none.

    Args:
        numbers: (packed,) from ``packed_numbers``.
        tokens: tokens of a tile.
        per_tile: one group a tile, or one for the image.
    """
    kept = numbers[numbers != NEWLINE].sort().values
    if not per_tile:
        return ImageLayout((TokenGroup(kept),), len(numbers))
    tile = kept // tokens
    groups = [TokenGroup(part, _grid(part % tokens, tokens)) for part in _split(kept, tile)]
    return ImageLayout(tuple(groups), len(numbers))


def drop_idle_newlines(packed: Tensor, numbers: Tensor, tokens: int) -> None:
    """Mark newline tokens of rows that kept no token as dropped (NaN), in place.

    Args:
        packed: (n, H) packed features, dropped rows NaN.
        numbers: (n,) from ``packed_numbers``.
        tokens: tokens of a tile; the base tile in front has no newlines of its own.
    """
    dropped = torch.isnan(packed[:, 0]).to(numbers.device)
    newlines = (numbers == NEWLINE).nonzero()[:, 0].tolist()
    start = tokens if len(newlines) > 1 else 0
    for newline in newlines:
        if bool(dropped[start:newline].all()):
            packed[newline] = torch.nan
        start = newline + 1


def _split(values: Tensor, key: Tensor) -> list[Tensor]:
    _, counts = torch.unique_consecutive(key, return_counts=True)
    return list(values.split(counts.tolist()))


def rectangle(tokens: int, rows: int | None = None) -> PatchGrid | None:
    """The grid of ``tokens`` in ``rows`` equal rows, a square when left out; None if it is none."""
    rows = round(tokens**0.5) if rows is None else rows
    cols = tokens // rows
    return PatchGrid(rows, cols) if rows * cols == tokens else None


def _grid(places: Tensor, tokens: int) -> PatchGrid | None:
    """The rectangle that is left of a square tile."""
    side = round(tokens**0.5)
    if side * side != tokens:
        return None
    rows, cols = len(torch.unique(places // side)), len(torch.unique(places % side))
    return PatchGrid(rows, cols) if rows * cols == len(places) else None
