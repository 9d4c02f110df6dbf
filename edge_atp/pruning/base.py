"""What every pruning method shares: the contract, the input checks and the house rules.

House rules: ties go to the lowest index, no index is chosen twice, kept indices ascend, NaN is an
error, num_kept == N is the identity, num_kept > N is an error. Position ids are the host's
business: every method keeps the original order, and the host numbers the kept tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from array_api_compat import device

from edge_atp.errors import ConfigError, MissingSignalError, ShapeError
from edge_atp.pruning.ops import namespace, require_finite, share
from edge_atp.pruning.schedule import Schedule
from edge_atp.types import Array, Selection, VisualSignals

# Which encoder output to enable when a method misses a signal.
_HOW_TO_GET = {
    "cls_attention": "the CLS attention row (vision graph output `cls_attention`; the encoder must"
    " have a CLS token)",
    "received_attention": "the attention each patch receives (models with edge_atp.hf.attach;"
    " exported engines do not put it out)",
    "patch_embeds": "the joint-space patches (vision graph output `patch_embeds`; needs a matching"
    " CLIP text tower, export with --text-tower)",
    "text_embed": "the question's CLIP embedding (graph `text`; export with --text-tower)",
    "patch_features": "the patch features (vision graph output `patch_features`)",
    "image_embeds": "the projected patches (run the projector before selection)",
    "text_tokens": "the language model's embeddings of the question",
    "patch_keys": "the attention keys (vision graph output `patch_keys`; export the model again"
    " where it is missing)",
    "patch_grid": "the patch grid (rows, cols)",
}

# The axis of each per-patch signal that has length N.
_PATCH_AXIS = {
    "patch_features": 0,
    "image_embeds": 0,
    "patch_embeds": 0,
    "patch_keys": 0,
    "cls_attention": -1,
    "received_attention": -1,
}

# Number of axes each array signal may have.
_AXES = {
    "patch_features": (2,),
    "image_embeds": (2,),
    "patch_embeds": (2,),
    "patch_keys": (2,),
    "text_tokens": (2,),
    "clip_text_tokens": (2,),
    "text_embed": (1,),
    "cls_key": (1,),
    "cls_attention": (1, 2),
    "received_attention": (1, 2),
}


_ARRAYS = frozenset({*_AXES, "cls_feature"})


class Pruner(ABC):
    """A pruning method. Subclasses are frozen dataclasses named ``Method``, one per module.

    Class attributes:
        needs: VisualSignals fields the method cannot work without.
        reads: fields it reads where they are present.
        checks_itself: needed fields whose values the method's arithmetic proves finite.
        site: where tokens are cut: "post_encoder", "in_encoder" or "in_llm".
    """

    needs: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = ()
    checks_itself: ClassVar[tuple[str, ...]] = ()
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
        used = self._used_signals(signals)
        num_patches = count_patches(signals)
        whole = isinstance(num_kept, (int, np.integer)) and not isinstance(num_kept, bool)
        if not whole or not 1 <= num_kept <= num_patches:
            raise ShapeError(
                f"num_kept is {num_kept}; it must be in [1, {num_patches}] (N patches), a whole"
                " number"
            )
        for name in used:
            if name in _AXES:
                _require_axes(name, getattr(signals, name))
        original, signals = signals, _in_numpy(signals, (*used, *self.reads))
        for name in used:
            if name in _AXES and name not in self.checks_itself:
                require_finite(name, getattr(signals, name))
        # An overflow is an error that says which signal, not a warning.
        with np.errstate(over="ignore", invalid="ignore"):
            selection = self._select(signals, num_kept)
        return selection if signals is original else _in_kind_of(original, used, selection)

    @property
    def needs_one_of(self) -> tuple[tuple[str, ...], ...]:
        """Groups of VisualSignals fields of which the method uses the first that is present."""
        return ()

    @property
    def name(self) -> str:
        """The method's name: its module's."""
        return type(self).__module__.rsplit(".", 1)[-1]

    def added(self, num_dropped: int) -> int:
        """Tokens that the method makes of ``num_dropped`` dropped ones, on top of the kept ones.

        Returns:
            0: most methods drop without a trace.
        """
        del num_dropped
        return 0

    def missing(self, *names: str) -> str:
        """The message where none of the signals ``names`` is there: what to enable."""
        which, exposed = " or ".join(names), "exposed neither" if len(names) > 1 else ""
        return (
            f"{self.name} needs {which}, {'and' if exposed else 'which'} the encoder"
            f" {exposed or 'did not expose'}: enable "
            + ", or ".join(_HOW_TO_GET.get(name, name) for name in names)
        )

    def _used_signals(self, signals: VisualSignals) -> list[str]:
        for name in self.needs:
            if getattr(signals, name) is None:
                raise MissingSignalError(self.missing(name))
        return [*self.needs, *(self._first(signals, group) for group in self.needs_one_of)]

    def _first(self, signals: VisualSignals, group: tuple[str, ...]) -> str:
        for name in group:
            if getattr(signals, name) is not None:
                return name
        raise MissingSignalError(self.missing(*group))

    @abstractmethod
    def _select(self, signals: VisualSignals, num_kept: int, /) -> Selection:
        """The method itself; inputs are checked."""


class InModelPruner(Pruner):
    """A method whose tokens are cut inside the vision encoder or the language model.

    Its scoring rule is a set of pure functions in the method's module; the hook that calls them
    lives in ``edge_atp.hf``.
    """

    def select(self, signals: VisualSignals, num_kept: int) -> Selection:
        """Not available: the method needs the model's inner layers.

        Raises:
            ConfigError: always; says how to run the method.
        """
        del signals, num_kept
        where = "vision encoder" if self.site == "in_encoder" else "language model"
        raise ConfigError(
            f"{self.name} runs inside the {where}: attach it with edge_atp.hf.attach(model,"
            " processor, pruner, keep), or choose a method with site 'post_encoder'"
        )

    @abstractmethod
    def schedule(self, num_visual: int, num_kept: int | None = None) -> Schedule:
        """Which layer keeps how many visual tokens.

        Args:
            num_visual: N, visual tokens before the first cut.
            num_kept: tokens left after the last cut; None takes the method's own ratios.
        Raises:
            ConfigError: a stage would keep more tokens than the one before it.
        """

    def scored_rows(self, num_visual: int, num_text: int) -> int:
        """Attention rows that scoring one cut computes again, for the compute account.

        Args:
            num_visual, num_text: visual and other tokens the scored layer sees.
        Returns:
            1: most methods look at the row of a CLS or last prompt token.
        """
        del num_visual, num_text
        return 1

    def _select(self, signals: VisualSignals, num_kept: int, /) -> Selection:
        raise NotImplementedError  # never reached: select raises


def count_patches(signals: VisualSignals) -> int:
    """N, the number of patches, checked to be the same in every signal present.

    Raises:
        ShapeError: signals disagree on N, or there is none to tell it from.
    """
    counts = {
        name: int(value.shape[axis])
        for name, axis in _PATCH_AXIS.items()
        if (value := getattr(signals, name)) is not None
    }
    if signals.patch_grid is not None:
        counts["patch_grid"] = signals.patch_grid.num_patches
    if len(set(counts.values())) != 1:
        raise ShapeError(f"the signals disagree on the number of patches: {counts or 'none given'}")
    return next(iter(counts.values()))


def _require_axes(name: str, value: Array) -> None:
    if value.ndim not in _AXES[name] or 0 in value.shape:
        axes = " or ".join(str(n) for n in _AXES[name])
        raise ShapeError(
            f"{name} has shape {tuple(value.shape)}; it must have {axes} axes, none of length 0"
        )


def _in_numpy(signals: VisualSignals, names: tuple[str, ...]) -> VisualSignals:
    """The signals with the named arrays as NumPy, if another library holds them all on the CPU.

    NumPy then computes on the same memory: the choice is the same to the last bit, and two to
    eight times faster than through torch's operators, whose calls and row products cost more.
    """
    hosted: dict[str, Any] = {}
    foreign = False
    for name in names:
        value = getattr(signals, name) if name in _ARRAYS else None
        if value is None:
            continue
        hosted[name] = share(value)
        if hosted[name] is None:
            return signals
        foreign = foreign or hosted[name] is not value
    return replace(signals, **hosted) if foreign else signals


def _in_kind_of(signals: VisualSignals, names: list[str], selection: Selection) -> Selection:
    """The selection's arrays in the library that holds the named signals."""
    arrays = [getattr(signals, name) for name in names if name in _ARRAYS]
    foreign = next(value for value in arrays if not isinstance(value, np.ndarray))
    xp = namespace(foreign)

    def back(array: Any) -> Array:
        return xp.asarray(array) if isinstance(array, np.ndarray) else array

    return Selection(
        *map(back, (selection.kept_indices, selection.scores, selection.order, selection.merged))
    )


def kept_from_order(order: Array, scores: Array | None, merged: Array | None = None) -> Selection:
    """Selection of the indices ``order`` (K,), sorted ascending."""
    xp = namespace(order)
    return Selection(kept_indices=xp.sort(order), scores=scores, order=order, merged=merged)


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


def as_indices(values: list[int], reference: Array) -> Array:
    """Host integers as an int64 array of ``reference``'s backend and device."""
    xp = namespace(reference)
    return xp.asarray(values, dtype=xp.int64, device=device(reference))
