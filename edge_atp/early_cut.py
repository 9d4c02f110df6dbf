"""Choosing among the patches that an encoder which cuts on its way has left ("cut+NAME").

Rows of its features are numbered 0 to K' - 1; masks, answers and callers number the patches of the
whole grid. What turns one into the other is here, and what such a question may ask for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_atp.budget import Budget
from edge_atp.errors import ConfigError, InvalidQueryError
from edge_atp.pruning import Pruner
from edge_atp.pruning.base import InModelPruner
from edge_atp.runtime.cut_encoder import CutEncoder, split_method
from edge_atp.types import Array, LayerCut, Policy, Selection


def require_behind_cut(method: str, pruner: Pruner) -> None:
    """Refuse methods that cannot stand behind an encoder's cut.

    Args:
        method: "cut+NAME".
        pruner: NAME's.
    Raises:
        ConfigError: it cuts inside the model itself, or reads what is not there any more.
    """
    name = split_method(method)[1]
    if isinstance(pruner, InModelPruner):
        raise ConfigError(
            f"{method}: {name} cuts inside the model itself; ask for {name}, or for a method that"
            " cuts between encoder and language model, such as cut+atp"
        )
    if "patch_grid" in pruner.needs:
        raise ConfigError(
            f"{method}: {name} reads the whole patch grid, which has gaps behind the cut;"
            f" ask for {name} alone"
        )
    if "patch_keys" in pruner.needs and getattr(pruner, "attention_layer", None) is not None:
        raise ConfigError(
            f"{method}: {name} reads a layer of its own, and the encoder that cuts ends with the"
            f" one that the projector reads; ask for {name} alone"
        )


def check_cut(encoder: CutEncoder, budget: Budget, num_patches: int) -> None:
    """Refuse what the cut does not leave; opens nothing.

    Args:
        budget: of a method "cut+NAME".
        num_patches: N of the whole grid.
    Raises:
        InvalidQueryError: more tokens are to be kept than the encoder leaves.
    """
    if budget.policy is not Policy.SCORE_MASS:
        wanted = budget.num_kept(num_patches)
        if wanted > encoder.num_left:
            raise InvalidQueryError(
                f"prune: {budget.method} is to keep {wanted} visual tokens, and the encoder's cut"
                f" leaves {encoder.num_left}; keep at most these, or ask for"
                f" {split_method(budget.method)[1]} alone"
            )


def layer_cuts(encoder: CutEncoder, num_images: int) -> tuple[LayerCut, ...]:
    """What the encoder's cuts left of that many images."""
    return tuple(LayerCut("vision", layer, kept * num_images) for layer, kept in encoder.cuts)


def on_whole_grid(
    selection: Selection, place: NDArray[np.int64] | None, num_patches: int
) -> Selection:
    """A selection of rows as one of patches.

    Args:
        place: (K',) the patch each row stands at; None where every patch is a row.
        num_patches: N.
    Returns:
        Indices into the N patches; (N,) scores, the lowest of the rows' for what was dropped.
    """
    if place is None:
        return selection
    scores: Array | None = None
    if selection.scores is not None:
        rows = np.asarray(selection.scores)
        scores = np.full(num_patches, rows.min(), rows.dtype)
        scores[place] = rows
    return Selection(
        kept_indices=place[np.asarray(selection.kept_indices)],
        scores=scores,
        order=place[np.asarray(selection.order)],
        merged=selection.merged,
    )


def rows_of(patches: Array, place: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """The rows (K,) at which ``patches`` stand; they are among ``place``."""
    indices: NDArray[np.int64] = np.asarray(patches)
    return indices if place is None else np.searchsorted(place, indices).astype(np.int64)
