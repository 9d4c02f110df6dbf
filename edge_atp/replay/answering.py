"""Asks the questions about the frames of a recording, in order, dropping none. No files, no clock.

What is answered depends on the recording, the questions and the model alone. A frame is encoded
when its first question comes, and the encoding is shared by all that want the same one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from edge_atp.encoding import Encoding, VisionCut
from edge_atp.errors import ConfigError, EdgeAtpError, ImageError
from edge_atp.pipeline import Pipeline
from edge_atp.replay.questions import ONCE, ReplayQuestion
from edge_atp.replay.recording import RecordedImage, Recording
from edge_atp.timing import StageClock, encoding_times
from edge_atp.types import Answer, StageTimes


@dataclass(frozen=True)
class Reply:
    """What one question got about one frame (or one frame of each of its cameras).

    images: in the order the model saw them.
    sequence: number of the reply among those to this question, from 0.
    answer: None if an image could not be decoded; ``error`` then says why.
    """

    question: ReplayQuestion
    images: tuple[RecordedImage, ...]
    sequence: int
    answer: Answer | None
    error: str = ""

    @property
    def newest(self) -> RecordedImage:
        """The image whose header the answer carries: the newest by its stamp."""
        return max(self.images, key=lambda image: image.stamp_ns)

    @property
    def time_ns(self) -> int:
        """When the last of the images was recorded."""
        return max(image.time_ns for image in self.images)

    @property
    def right(self) -> bool | None:
        """Whether the text is the expected one (case and outer blanks aside); None: not known."""
        if self.question.expect is None:
            return None
        text = self.answer.text if self.answer else ""
        return text.strip().lower() == self.question.expect.strip().lower()


class Replayer:
    """Asks the questions of a replay.

    Args:
        pipeline: the loaded model.
        questions: what to ask, in this order for each frame.
        cameras: names of the recording's cameras.
        every: ask about every n-th frame of each camera, the first included.
    Raises:
        ConfigError: a question the model or the recording cannot serve; names its entry.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        questions: Sequence[ReplayQuestion],
        cameras: Sequence[str],
        every: int = 1,
    ) -> None:
        if every < 1:
            raise ConfigError(f"--every is {every}; it must be 1 (every frame) or more")
        self.num_encoded = 0
        self._pipeline = pipeline
        self._every = every
        self._newest: dict[str, _Newest] = {}
        self._schedules = [_Schedule(q, q.cameras or tuple(cameras)) for q in questions]
        for schedule in self._schedules:
            _check(pipeline, schedule, cameras)

    def run(self, recording: Recording) -> Iterator[tuple[RecordedImage, list[Reply]]]:
        """Each image of the recording in order, with the replies it led to (often none)."""
        seen = dict.fromkeys(recording.topics, 0)
        for image in recording.images():
            self._newest[image.camera] = _Newest(image)
            asked = seen[image.camera] % self._every == 0
            seen[image.camera] += 1
            yield image, self._ask(image, recording.start_ns) if asked else []

    def _ask(self, image: RecordedImage, start_ns: int) -> list[Reply]:
        replies = []
        for schedule in self._schedules:
            ready = schedule.cameras[0] == image.camera and self._newest.keys() >= set(
                schedule.cameras
            )
            if ready and schedule.is_due(image.time_ns - start_ns):
                replies.append(self._reply(schedule))
        return replies

    def _reply(self, schedule: _Schedule) -> Reply:
        newest = [self._newest[name] for name in schedule.cameras]
        reply = Reply(
            question=schedule.question,
            images=tuple(entry.image for entry in newest),
            sequence=schedule.num_asked - 1,
            answer=None,
        )
        try:
            return replace(reply, answer=self._answer(schedule, newest))
        # A broken frame is part of the recording; a broken engine ends the replay.
        except ImageError as error:
            return replace(reply, error=str(error))

    def _answer(self, schedule: _Schedule, newest: Sequence[_Newest]) -> Answer:
        query = schedule.question.query
        wanted = list(zip(newest, self._pipeline.wants_cut(query, len(newest)), strict=True))
        spent = encoding_times([self._encode(entry, cut) for entry, cut in wanted])
        answer = self._pipeline.answer(query, [entry.encodings[cut] for entry, cut in wanted])
        times = replace(
            answer.times,
            preprocess=answer.times.preprocess + spent.preprocess,
            vision_encode=answer.times.vision_encode + spent.vision_encode,
            prune=answer.times.prune + spent.prune,
            first_token=answer.times.first_token + spent.total,
            total=answer.times.total + spent.total,
        )
        return replace(answer, times=times)

    def _encode(self, entry: _Newest, cut: VisionCut | None) -> StageTimes:
        """Decode and encode a frame unless an earlier question did; seconds this took."""
        if cut in entry.encodings:
            return StageTimes()
        begun_s = time.perf_counter()
        frame = entry.image.frame()
        decoding_s = time.perf_counter() - begun_s
        clock = StageClock()
        entry.encodings[cut] = self._pipeline.encode(frame, clock, cut=cut)
        self.num_encoded += 1
        times = clock.times()
        return replace(times, preprocess=times.preprocess + decoding_s)


@dataclass
class _Newest:
    """The newest image of a camera; ``encodings``, by what drops patches in the encoder, are made
    when the first question needs them."""

    image: RecordedImage
    encodings: dict[VisionCut | None, Encoding] = field(default_factory=dict)


@dataclass
class _Schedule:
    """When a question is due."""

    question: ReplayQuestion
    cameras: tuple[str, ...]
    num_asked: int = 0
    next_ns: int = 0

    def is_due(self, offset_ns: int) -> bool:
        """Whether to ask about a frame recorded this long after the start; counts it if so."""
        question = self.question
        in_time = round(question.at_s * 1e9) <= offset_ns <= question.until_s * 1e9
        done = question.mode == ONCE and self.num_asked > 0
        if not in_time or done or offset_ns < self.next_ns:
            return False
        self.num_asked += 1
        if question.max_rate_hz:
            self.next_ns = offset_ns + int(1e9 / question.max_rate_hz)
        return True


def _check(pipeline: Pipeline, schedule: _Schedule, cameras: Sequence[str]) -> None:
    question = schedule.question
    if unknown := [name for name in schedule.cameras if name not in cameras]:
        raise ConfigError(
            f"{question.source}: unknown camera {', '.join(unknown)}; cameras of the bag:"
            f" {', '.join(cameras)} (name them with --camera NAME=TOPIC)"
        )
    try:
        pipeline.check(question.query, num_frames=len(schedule.cameras))
    except EdgeAtpError as error:
        raise ConfigError(f"{question.source}: {error}") from error
