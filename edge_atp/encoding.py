"""A frame through the one vision encoder that its question wants.

A model directory holds up to three: the whole one, one that drops patches by itself (``cut+NAME``,
exported with --vision-cut), and the pieces between which a method drops them (such as evit, tome
and ivtp; --vision-groups). None of them reads the question, so questions that want the same cut of
the same frame share one encoding. Knows nothing of budgets and queries.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge_atp.frame_reuse import FrameMemory
from edge_atp.pruning.base import InModelPruner
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.in_model import InModelRunner
from edge_atp.runtime.in_vit.encoder import PrunedVision
from edge_atp.runtime.outputs import Float, VisionOutput
from edge_atp.timing import StageClock
from edge_atp.types import Frame, SourceRegion


@dataclass(frozen=True)
class VisionCut:
    """What drops patches of an image on their way through the vision encoder.

    pruner: the method that does so between the encoder's pieces; None for the encoder that was
        exported with cuts of its own.
    num_kept: patches of the image that ``pruner`` leaves in the end.
    """

    pruner: InModelPruner | None = None
    num_kept: int = 0


EXPORTED_CUT = VisionCut()

Preprocess = Callable[[NDArray[np.uint8]], tuple[Float, SourceRegion]]


@dataclass(frozen=True)
class Encoding:
    """One frame after the vision encoder; several questions may share it.

    reused: the frame looked like the camera's last one, whose encoding this is.
    cut: what dropped patches in the encoder; None where it saw every patch to its end.
    pruned: what a ``cut`` by a method left, with what its later stages read.
    """

    frame: Frame
    region: SourceRegion
    vision: VisionOutput
    reused: bool = False
    cut: VisionCut | None = None
    pruned: PrunedVision | None = None

    def shown(self) -> Frame:
        """What the encoder saw, as a frame of its own: the part of the frame in ``region``."""
        region = self.region
        rows = slice(region.y, region.y + region.height)
        columns = slice(region.x, region.x + region.width)
        return replace(self.frame, image=self.frame.image[rows, columns])


class FrameEncoder:
    """Preprocesses and encodes frames, or finds them encoded.

    Args:
        engine: a loaded model.
        preprocess: image -> pixel_values and the region they cover (``Preprocessor``). An
            attribute that may be replaced: each ``encode`` calls what is there then.
        frame_tolerance: see ``FrameMemory``.
    """

    def __init__(self, engine: Engine, preprocess: Preprocess, frame_tolerance: float) -> None:
        self._engine = engine
        self.preprocess = preprocess
        self._pieces = InModelRunner(engine)
        self._frames: FrameMemory[Encoding] = FrameMemory(frame_tolerance)
        outputs = engine.directory.manifest.graph("vision").outputs
        self._outputs = frozenset(output.name for output in outputs)

    def open(self, cut: VisionCut | None, should_stop: Callable[[], bool] | None = None) -> bool:
        """Open the graphs of an encoder that few questions want, unless they are open.

        Args:
            should_stop: asked before each graph; once true, the rest is left for later.
        Returns:
            Whether there was one to open.
        Raises:
            ArtifactError: a graph is missing or damaged.
            BackendUnavailableError: the backend cannot run it.
        """
        if cut is None:  # the engine has the whole encoder open from the start
            return False
        if cut.pruner is None:
            return self._engine.cut_encoder.open()
        return self._pieces.open(cut.pruner, should_stop)

    def encode(
        self, frame: Frame, clock: StageClock, optional: Collection[str], cut: VisionCut | None
    ) -> Encoding:
        """Encode a frame, unless it is an unchanged one.

        Args:
            clock: graphs that have to be opened first count as waiting.
            optional: which of ``OPTIONAL_VISION_OUTPUTS`` the whole encoder is to put out.
            cut: what drops patches on the way.
        Raises:
            ConfigError: the directory lacks the graphs, or the method's layers do not fit it.
            ArtifactError: see ``open``.
        """
        if self.open(cut):
            clock.lap("queue_wait")
        last = self._frames.recall(frame, cut)
        if last is not None and self.serves(last, optional, cut):
            clock.lap("preprocess")
            return replace(last, frame=frame, reused=True)
        pixel_values, region = self.preprocess(frame.image)
        clock.lap("preprocess")
        pruned = None
        if cut is None:
            vision = self._engine.encode_image(pixel_values, optional)
        elif cut.pruner is None:
            vision = self._engine.cut_encoder.encode(pixel_values)
        else:
            pruned = self._pieces.encode(pixel_values, cut.pruner, cut.num_kept, clock.lap)
            vision = _left_of(pruned)
        encoding = Encoding(frame, region, vision, cut=cut, pruned=pruned)
        self._frames.remember(frame, encoding, cut)
        clock.lap("vision_encode")
        return encoding

    def encode_again(
        self,
        encoding: Encoding,
        clock: StageClock,
        optional: Collection[str],
        cut: VisionCut | None,
    ) -> Encoding:
        """The same part of the same frame by the encoder that is wanted; ``encoding`` itself if it
        serves."""
        if self.serves(encoding, optional, cut):
            return encoding
        again = self.encode(encoding.shown(), clock, optional, cut)
        return replace(again, frame=encoding.frame, region=encoding.region)

    def serves(self, encoding: Encoding, optional: Collection[str], cut: VisionCut | None) -> bool:
        """Whether an encoding is of the encoder asked for, with those outputs that it has."""
        if cut is not None or encoding.cut is not None:
            return cut == encoding.cut
        return encoding.vision.has(name for name in optional if name in self._outputs)

    def forget(self) -> None:
        """Forget every frame."""
        self._frames.clear()


def _left_of(pruned: PrunedVision) -> VisionOutput:
    """The features that a method left. The other signals are left out: the choice is made."""
    none: Float = np.zeros((len(pruned.place), 0), np.float32)
    return VisionOutput(pruned.patch_features, none.ravel(), none, place=pruned.place)
