"""A vision encoder in groups of layers, between which a rule cuts or merges patches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from edge_atp.errors import ConfigError, InferenceError, MissingSignalError, ShapeError
from edge_atp.pruning.tome import log_sizes
from edge_atp.runtime.in_vit.base import EncoderRule, GroupView, PatchTokens
from edge_atp.runtime.lazy_graphs import LazyGraphs
from edge_atp.runtime.manifest import VisionSpec
from edge_atp.runtime.outputs import Float
from edge_atp.runtime.sessions.base import Arrays, Session

# Told "vision_encode" when graphs have run and "prune" when a cut was decided.
OnLap = Callable[[str], object]
# Stands for what a rule does not read.
_NOTHING = np.zeros((0, 0), np.float32)


@dataclass(frozen=True)
class PrunedVision:
    """One image behind an encoder that dropped patches on the way.

    hidden_state: (1 + K, D) what the projector reads, CLS first.
    place: (K,) int64 ascending, the patch each of the K tokens stands at.
    cuts: layer -> places left behind its attention, for every layer that cut.
    """

    hidden_state: Float
    place: NDArray[np.int64]
    cuts: dict[int, NDArray[np.int64]] = field(default_factory=dict)

    @property
    def patch_features(self) -> Float:
        """(K, D) without CLS."""
        return self.hidden_state[1:]

    @property
    def cls_feature(self) -> Float:
        """(D,) the CLS token beside them."""
        feature: Float = self.hidden_state[0]
        return feature


class GroupedEncoder:
    """Runs ``vision_group.<i>``, ``vision_tail`` and ``vision_cls``.

    May be opened by one thread while another runs it.
    Args:
        open_graph: opens a graph of the directory by its role; called when it is first needed.
        vision: with group_layers above 0, or nothing can be run.
    """

    def __init__(self, open_graph: Callable[[str], Session], vision: VisionSpec) -> None:
        self._graphs = LazyGraphs(open_graph)
        self._vision = vision
        size, count = vision.group_layers, vision.consumed_layers
        starts = range(0, count, size) if size else ()
        self.bounds = [(first, min(first + size, count)) for first in starts]

    def check(self, rule: EncoderRule) -> None:
        """Refuse a rule that cuts where no group ends.

        Raises:
            ConfigError: the rule cuts at a layer that is not the last of a group.
        """
        tops = [end - 1 for _, end in self.bounds]
        wrong = [layer for layer in rule.cut_layers if layer not in tops]
        if wrong:
            raise ConfigError(
                f"{rule.pruner.name} cuts in vision layer {wrong[0]}; this model's encoder is"
                f" exported {self._vision.group_layers} layers to a group and can cut in layers"
                f" {', '.join(map(str, tops))}. Choose among these, or export with"
                " --vision-groups 1"
            )

    def open(
        self, *, with_cls: bool = False, should_stop: Callable[[], bool] | None = None
    ) -> bool:
        """Open the graphs now instead of with the first image.

        Args:
            with_cls: also the one behind ``cls_embed``.
            should_stop: asked before each graph; once true, the rest is left for later.
        Returns:
            Whether one of them was not open yet.
        """
        roles = [f"vision_group.{number}" for number in range(len(self.bounds))]
        roles.append("vision_tail")
        if with_cls and self._vision.embed_dim:
            roles.append("vision_cls")
        opened = False
        for role in roles:
            if should_stop is not None and should_stop():
                break
            opened |= self._graphs.open(role)
        return opened

    def encode(
        self, pixel_values: Float, rule: EncoderRule | None = None, on_lap: OnLap | None = None
    ) -> PrunedVision:
        """Encode one preprocessed image (1, 3, size, size); without a rule nothing is cut.

        Raises:
            ShapeError: another shape, or values that are not finite.
            ConfigError: see ``check``.
        """
        check_pixels(pixel_values, self._vision.image_size)
        if rule:
            self.check(rule)
        lap = on_lap or (lambda _stage: None)
        reads = rule.reads if rule else ()
        count = self._vision.num_patches
        tokens = PatchTokens(_NOTHING, np.arange(count), np.ones(count + 1, np.float32))
        cuts: dict[int, NDArray[np.int64]] = {}
        inputs: Arrays = {"pixel_values": pixel_values.astype(np.float32, copy=False)}
        for number, (first, end) in enumerate(self.bounds):
            out = self._graphs.get(f"vision_group.{number}").run(inputs, ("next_attended", *reads))
            tokens = replace(tokens, states=out["next_attended"][0])
            lap("vision_encode")
            if rule:
                tokens = rule.cut(_view(first, end - 1, out), tokens)
                if end - 1 in rule.cut_layers:
                    cuts[end - 1] = tokens.place
                lap("prune")
            inputs = {
                "attended": np.ascontiguousarray(tokens.states)[None],
                "key_bias": self._key_bias(rule, tokens),
            }
        del inputs["key_bias"]
        hidden_state = self._graphs.get("vision_tail").run(inputs)["hidden_state"][0]
        lap("vision_encode")
        if not np.isfinite(hidden_state).all():
            raise InferenceError("the vision encoder gave NaN or infinity; check its precision")
        return PrunedVision(hidden_state, tokens.place, cuts)

    def cls_embed(self, image: PrunedVision) -> Float:
        """(P,) the image's CLS token in the joint image-text space.

        Raises:
            MissingSignalError: the model directory has no joint space.
        """
        if not self._vision.embed_dim:
            raise MissingSignalError(
                "the model directory has no joint image-text space; export with --text-tower"
            )
        out = self._graphs.get("vision_cls").run({"hidden_state": image.hidden_state[None]})
        embed: Float = out["cls_embed"][0]
        return embed

    def close(self) -> None:
        """Release the graphs; they are opened again when needed."""
        self._graphs.close()

    @staticmethod
    def _key_bias(rule: EncoderRule | None, tokens: PatchTokens) -> Float:
        if rule is None or not rule.weighs_sizes:
            return np.zeros(len(tokens.states), np.float32)
        bias: Float = log_sizes(tokens.sizes)
        return bias


def check_pixels(pixel_values: Float, size: int) -> None:
    """Refuse what is no preprocessed image of a model with input side ``size``.

    Raises:
        ShapeError: another shape than (1, 3, size, size), or values that are not finite.
    """
    if pixel_values.shape != (1, 3, size, size):
        raise ShapeError(
            f"pixel_values is {pixel_values.shape}; this model takes (1, 3, {size}, {size})"
        )
    if not np.isfinite(pixel_values).all():
        raise ShapeError("pixel_values contains NaN or infinity; check the image")


def _view(first: int, top: int, out: Arrays) -> GroupView:
    seen = (out.get(name, _NOTHING) for name in ("attention", "keys", "values"))
    return GroupView(first, top, *seen)
