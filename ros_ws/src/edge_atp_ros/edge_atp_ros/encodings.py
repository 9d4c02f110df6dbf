"""Frames that have been read and encoded, shared by all questions about them.

A frame is decoded once, and encoded once in each way that questions want, however many they are,
alone or together with other cameras. Bounded: the newest frames of each camera, and of each frame
the encodings used last.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from edge_atp.encoding import Encoding, VisionCut
from edge_atp.errors import ImageError
from edge_atp.pipeline import Pipeline
from edge_atp.timing import StageClock
from edge_atp.types import SourceRegion, StageTimes
from edge_atp_ros.frames import CameraImage, StoredFrame

# A frame in use, and the next.
_PER_CAMERA = 2
# The whole one, the exported cut's, and two methods' at one budget each: a client that asks with
# another budget each time about a camera that stands still must not fill the memory.
_PER_FRAME = 4


@dataclass
class _Known:
    image: CameraImage
    encodings: OrderedDict[tuple[SourceRegion | None, VisionCut | None], Encoding] = field(
        default_factory=OrderedDict
    )


class Encodings:
    """Encodes frames, or finds them encoded. For the inference thread alone.

    Args:
        num_cameras: of the node.
    """

    def __init__(self, num_cameras: int) -> None:
        self._capacity = _PER_CAMERA * num_cameras
        self._known: OrderedDict[StoredFrame, _Known] = OrderedDict()
        self.num_encoded = 0

    def read(self, stored: StoredFrame) -> CameraImage:
        """The image message of a frame.

        Raises:
            ImageError: it is malformed.
        """
        known = self._known.get(stored)
        if known is None:
            known = self._known[stored] = _Known(stored.read())
        self._known.move_to_end(stored)
        while len(self._known) > self._capacity:
            self._known.popitem(last=False)
        return known.image

    def encode(
        self,
        pipeline: Pipeline,
        image: CameraImage,
        stored: StoredFrame | None,
        region: SourceRegion | None,
        *,
        cut: VisionCut | None = None,
    ) -> tuple[Encoding, StageTimes]:
        """Encode an image, unless it is known.

        Args:
            stored: the frame it was read from; None for an image that no camera sent.
            region: the part of the image to look at; None for all of it.
            cut: what drops patches on the way through the encoder (``Pipeline.wants_cut``).
        Returns:
            The encoding, its regions in pixels of the whole image, and the seconds spent now on
            preprocessing, encoding, and choosing where a cut does that.
        Raises:
            ImageError: it cannot be decoded, or the region does not lie in it.
        """
        known = self._known.get(stored) if stored is not None else None
        if known is not None and (region, cut) in known.encodings:
            known.encodings.move_to_end((region, cut))
            return known.encodings[region, cut], StageTimes()
        begun_s = time.perf_counter()
        frame = image.frame()
        conversion_s = time.perf_counter() - begun_s
        clock = StageClock()
        if region is None:
            encoding = pipeline.encode(frame, clock, cut=cut)
        else:
            part = replace(frame, image=cropped(frame.image, region, frame.camera))
            encoding = pipeline.encode(part, clock, cut=cut)
            encoding = replace(encoding, frame=frame, region=shifted(encoding.region, region))
        self.num_encoded += 1
        if known is not None:
            known.encodings[region, cut] = encoding
            if len(known.encodings) > _PER_FRAME:
                known.encodings.popitem(last=False)
        times = clock.times()
        return encoding, StageTimes(
            preprocess=times.preprocess + conversion_s,
            vision_encode=times.vision_encode,
            prune=times.prune,
        )

    def clear(self) -> None:
        """Release all frames."""
        self._known.clear()


def cropped(image: NDArray[np.uint8], region: SourceRegion, camera: str) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 -> the region of it, a view.

    Raises:
        ImageError: the region does not lie in the image.
    """
    height, width = image.shape[:2]
    if region.x + region.width > width or region.y + region.height > height:
        values = [region.x, region.y, region.width, region.height]
        raise ImageError(
            f"cameras.{camera}.roi is {values} (x, y, width, height), which does not lie in the"
            f" image of {width} x {height} pixels; change the parameter, or the camera's size"
        )
    return image[region.y : region.y + region.height, region.x : region.x + region.width]


def shifted(inner: SourceRegion, outer: SourceRegion) -> SourceRegion:
    """A region in pixels of ``outer``, in pixels of the image that ``outer`` is a part of."""
    return replace(inner, x=inner.x + outer.x, y=inner.y + outer.y)
