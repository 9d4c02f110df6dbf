"""One image's encodings, each made when an arm first wants it and shared by all that want the same.

An arm that cuts in the vision encoder wants another one than dense, and dense may not be asked.
"""

from __future__ import annotations

from edge_atp.encoding import Encoding, VisionCut
from edge_atp.pipeline import Pipeline
from edge_atp.timing import StageClock, encoding_times
from edge_atp.types import Frame, Query


class ImageEncodings:
    """Encodes one image as questions want it.

    Args:
        pipeline: any of those that will answer: they share one engine.
    """

    def __init__(self, pipeline: Pipeline, frame: Frame) -> None:
        self._pipeline = pipeline
        self._frame = frame
        self._made: dict[VisionCut | None, tuple[Encoding, float]] = {}

    def wanted_by(self, query: Query) -> tuple[Encoding, float]:
        """The encoding that a question about the image wants, and the seconds that making it took,
        now or before.

        Raises:
            ConfigError, InvalidQueryError: see ``Pipeline.wants_cut``.
        """
        (cut,) = self._pipeline.wants_cut(query, 1)
        if cut not in self._made:
            clock = StageClock()
            encoding = self._pipeline.encode(self._frame, clock, cut=cut)
            self._made[cut] = encoding, encoding_times([clock.times()]).total
        return self._made[cut]
