"""What every pruning method shares: the contract, the input checks and the house rules.

House rules: ties go to the lowest index, no index is chosen twice, kept indices ascend, NaN is an
error, num_kept == N is the identity, num_kept > N is an error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from array_api_compat import array_namespace

from edge_atp.errors import MissingSignalError, ShapeError
from edge_atp.types import Array, Selection, VisualSignals

# Which encoder output to enable when a method misses a signal.
_HOW_TO_GET = {
    "cls_attention": "the CLS attention row (vision graph output `cls_attention`)",
    "received_attention": "the received-attention row (vision graph output `received_attention`)",
    "patch_embeds": "the joint-space patches (vision graph output `patch_embeds`; needs a matching"
    " CLIP text tower, export with --text-tower)",
    "text_embed": "the question's CLIP embedding (graph `text`; export with --text-tower)",
    "patch_features": "the patch features (vision graph output `patch_features`)",
    "image_embeds": "the projected patches (run the projector before selection)",
    "text_tokens": "the language model's embeddings of the question",
    "clip_text_tokens": "per-token CLIP text embeddings (text graph output `text_tokens`)",
    "patch_keys": "the attention keys (vision graph output `patch_keys`)",
    "cls_key": "the CLS attention key (vision graph output `cls_key`)",
    "patch_grid": "the patch grid (rows, cols)",
}


class Pruner(ABC):
    """A pruning method. Subclasses are frozen dataclasses named ``Method``, one per module.

    Class attributes:
        needs: VisualSignals fields the method cannot work without.
        site: where tokens are cut: "post_encoder", "in_encoder" or "in_llm".
    """

    needs: ClassVar[tuple[str, ...]] = ()
    site: ClassVar[str] = "post_encoder"

    def select(self, signals: VisualSignals, num_kept: int) -> Selection:
        """Choose ``num_kept`` of the N visual tokens.

        Args:
            signals: encoder outputs; those in ``needs`` must be present.
            num_kept: K in [1, N].
        Returns:
            Selection with K ascending indices.
        Raises:
            MissingSignalError: a needed signal is absent; the message says how to enable it.
            ShapeError: K out of [1, N], inconsistent lengths, or non-finite values.
        """
        for name in self.needs:
            if getattr(signals, name) is None:
                raise MissingSignalError(
                    f"{self.name} needs {name}, which the encoder did not expose:"
                    f" enable {_HOW_TO_GET[name]}"
                )
        num_patches = count_patches(signals)
        if not 1 <= num_kept <= num_patches:
            raise ShapeError(
                f"num_kept is {num_kept}; it must be in [1, {num_patches}] (N patches)"
            )
        for name in self.needs:
            _require_finite(name, getattr(signals, name))
        return self._select(signals, num_kept)

    @property
    def name(self) -> str:
        """The method's name: its module's."""
        return type(self).__module__.rsplit(".", 1)[-1]

    @abstractmethod
    def _select(self, signals: VisualSignals, num_kept: int) -> Selection:
        """The method itself; inputs are checked."""


# The axis of each per-patch signal that has length N.
_PATCH_AXIS = {
    "patch_features": 0,
    "image_embeds": 0,
    "patch_embeds": 0,
    "patch_keys": 0,
    "cls_attention": -1,
    "received_attention": -1,
}


def count_patches(signals: VisualSignals) -> int:
    """N, the number of patches, checked to be the same in every signal present.

    Raises:
        ShapeError: signals disagree on N, or there is none to tell it from.
    """
    counts = {
        name: int(getattr(signals, name).shape[axis])
        for name, axis in _PATCH_AXIS.items()
        if getattr(signals, name) is not None
    }
    if signals.patch_grid is not None:
        counts["patch_grid"] = signals.patch_grid.num_patches
    if len(set(counts.values())) != 1:
        raise ShapeError(f"the signals disagree on the number of patches: {counts or 'none given'}")
    return next(iter(counts.values()))


def _require_finite(name: str, value: Any) -> None:
    if not hasattr(value, "shape"):
        return
    xp = array_namespace(value)
    if not bool(xp.all(xp.isfinite(value))):
        raise ShapeError(f"{name} contains NaN or infinity; check the encoder's precision")


def kept_from_order(order: Array, scores: Array | None) -> Selection:
    """Selection of the indices ``order`` (K,), sorted ascending."""
    xp = array_namespace(order)
    return Selection(kept_indices=xp.sort(order), scores=scores, order=order)


def any_patch_signal(signals: VisualSignals) -> Array:
    """Some per-patch array of the signals: tells methods without inputs which backend to use.

    Raises:
        ShapeError: there is none.
    """
    for name in _PATCH_AXIS:
        value = getattr(signals, name)
        if value is not None:
            return value
    raise ShapeError("the signals hold no per-patch array; give at least patch_features")
