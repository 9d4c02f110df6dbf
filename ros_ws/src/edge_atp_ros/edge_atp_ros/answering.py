"""From a question to its one final answer: its frames, the pipeline, what is published.

Runs in the inference thread. Whatever goes wrong becomes an answer with an error code; nothing
raised here ends the thread.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from edge_atp_msgs import msg as msgs
from rclpy.impl.rcutils_logger import RcutilsLogger

from edge_atp import types
from edge_atp.encoding import Encoding
from edge_atp.pipeline import Pipeline
from edge_atp.timing import encoding_times
from edge_atp_ros.cameras import Cameras
from edge_atp_ros.convert import set_frames, to_answer, to_mask_array
from edge_atp_ros.encodings import Encodings
from edge_atp_ros.error_codes import error_code, error_text, status
from edge_atp_ros.estimating import Estimator
from edge_atp_ros.frames import CameraImage, FrameSet
from edge_atp_ros.freshness import check_age, is_stale
from edge_atp_ros.log_line import log_line
from edge_atp_ros.parameters import NodeSettings
from edge_atp_ros.publishers import Outputs
from edge_atp_ros.questions import Intake, Question
from edge_atp_ros.refusal_log import RefusalLog
from edge_atp_ros.refusals import (
    CanceledError,
    ExpiredError,
    NoFrameError,
    WithdrawnError,
)

_CANCELED = "the node was deactivated before the answer was complete; ask again"
WITHDRAWN = "cancelled by the client"
_REMOVED = "the standing question was removed or replaced"
# Conversations of which the newest frames are remembered; the pipeline keeps fewer.
_CONVERSATIONS = 1024


@dataclass(frozen=True)
class Loaded:
    """What answers are made with; replaced as a whole when a parameter changes.

    regions: the part of each camera's image to look at; all of it for cameras not named.
    """

    pipeline: Pipeline
    settings: NodeSettings
    regions: Mapping[str, types.SourceRegion] = field(default_factory=dict)


class Answerer:
    """Answers questions about the frames they come with.

    Args:
        loaded: the pipeline and the node's settings; may be replaced at any time.
        now_ns: the ROS clock.
        on_final: told each final answer that is published.
    """

    def __init__(
        self,
        loaded: Loaded,
        cameras: Cameras,
        intake: Intake,
        outputs: Outputs,
        now_ns: Callable[[], int],
        logger: RcutilsLogger,
    ) -> None:
        self.loaded = loaded
        self.encodings = Encodings(len(cameras.names))
        self.on_final: Callable[[Question, msgs.Answer], None] = lambda _question, _message: None
        self._cameras = cameras
        self._intake = intake
        self._outputs = outputs
        self._now_ns = now_ns
        self._logger = logger
        self.refusal_log = RefusalLog(logger)
        self._estimator = Estimator()
        self._talked_about: OrderedDict[str, FrameSet] = OrderedDict()

    # What the scheduler asks -----------------------------------------------------------------

    def frames_for(self, question: Question) -> FrameSet | None:
        """What a question asked once would be answered about now; None: nothing is there yet."""
        return () if question.images else self._cameras.newest(question.cameras)

    def hopeless(self, question: Question, left_s: float) -> bool:
        """Whether a question cannot be answered in the seconds left."""
        pipeline, num_images = self.loaded.pipeline, len(question.cameras)
        return self._estimator.hopeless(pipeline, question.query, num_images, left_s)

    def is_stale(self, question: Question, frames: FrameSet) -> bool:
        """Whether frames have become too old for a question."""
        stamps = [frame.stamp_ns or 0 for frame in frames]
        return is_stale(stamps, self._now_ns(), question.max_frame_age_s)

    # What the worker asks --------------------------------------------------------------------

    def serve(self, question: Question, stopping: Callable[[], bool]) -> None:
        """Answer one question; publishes exactly one final answer, whatever happens."""
        images: list[CameraImage] = []
        if question.reply is not None:
            question.reply.begun()
        try:
            self._require_time(question)
            _require_wanted(question, stopping)
            for image in self._images(question):
                images.append(image)  # one by one: those before a malformed one are named
            answer = self._answer(question, images, stopping)
            headers = [image.header for image in images]
            masks = None
            if answer.masks:  # none if it ended early
                with_scores = self.loaded.settings.publish_scores
                masks = to_mask_array(answer, headers, question.sequence, with_scores)
            message = self._message(question, answer, images, stopping)
        except Exception as error:  # anything: the question is owed an answer
            self.refuse(question, error, images)
            return
        self._deliver(question, message, masks)
        if masks is not None:
            caption = f"{question.query.text}\n{answer.text}"
            self._outputs.publish_pictures(answer.masks, headers, caption)

    def cancel(self, question: Question) -> None:
        """Answer a question that will not be served because the node stops."""
        self.refuse(question, CanceledError(_CANCELED))

    def refuse(
        self, question: Question, error: BaseException, images: Sequence[CameraImage] = ()
    ) -> None:
        """Answer a question with the error that stopped it."""
        message = self._blank(question, images)
        message.status = status(error)
        message.error_code = error_code(error)
        message.error_msg = error_text(error)
        message.frames_dropped = self._intake.answered(question)
        message.latency.total = time.perf_counter() - question.accepted_s
        message.latency.queue_wait = message.latency.total
        self.refusal_log.write(question, error, message)
        self._deliver(question, message)

    def _deliver(
        self, question: Question, message: msgs.Answer, masks: msgs.PatchMaskArray | None = None
    ) -> None:
        if not question.claim():  # the watchdog has answered meanwhile
            return
        if message.status != msgs.Answer.STATUS_ERROR:
            self._logger.debug(log_line(message))
        try:
            if masks is not None:
                self._outputs.publish_masks(masks)
        finally:
            try:
                self._outputs.publish_answer(message)
                self.on_final(question, message)
            finally:
                if question.reply is not None:
                    question.reply.final(message, masks)

    # One answer ------------------------------------------------------------------------------

    def _answer(
        self, question: Question, images: Sequence[CameraImage], stopping: Callable[[], bool]
    ) -> types.Answer:
        loaded, query = self.loaded, question.query
        ages_s = check_age(images, self._now_ns(), question.max_frame_age_s)
        encodings, spent = self._encode(loaded, question, images, stopping)
        answer = loaded.pipeline.answer(
            query,
            self._not_yet_seen(loaded.pipeline, question, encodings),
            accepted_s=question.accepted_s,
            frame_age_s=min(ages_s),
            deadline_s=question.expires_s,
            on_text=self._streamer(question, images),
            should_stop=lambda: stopping() or question.canceled(),
        )
        # The pipeline counts all time before it as waiting; part of it was work on the frames.
        times = replace(
            answer.times,
            queue_wait=answer.times.queue_wait - spent.total,
            preprocess=answer.times.preprocess + spent.preprocess,
            vision_encode=answer.times.vision_encode + spent.vision_encode,
            prune=answer.times.prune + spent.prune,
        )
        if answer.status in (types.Status.FINAL, types.Status.TRUNCATED):
            self._estimator.observe(query, len(images), times.total - times.queue_wait)
            self._remember(question)
        return replace(answer, times=times)

    def _require_time(self, question: Question) -> None:
        """Give up a question whose deadline cannot be met, before work is wasted on it.

        Raises:
            ExpiredError: says how much time there was, and how much is expected to be needed.
        """
        left_s = question.expires_in_s()
        if left_s <= 0:
            raise ExpiredError(f"the deadline of {question.deadline_s:g} s passed while waiting")
        if question.late:
            self._estimator.given_up()
            raise ExpiredError(
                f"the deadline of {question.deadline_s:g} s cannot be met: {left_s:.3f} s are left,"
                " and such an answer is expected to take longer"
            )
        if question.deadline_s > 0:
            self._estimator.tried()

    def _images(self, question: Question) -> Iterator[CameraImage]:
        """The image of each camera of the question, in its order.

        Raises:
            NoFrameError: a camera has sent none in time, or none that matches the others'.
            ImageError: a message is malformed.
        """
        if question.images:
            yield from question.images
            return
        if question.frames is None:
            raise NoFrameError(self._why_no_frames(question))
        self._cameras.use(question.frames)
        for frame in question.frames:
            yield self.encodings.read(frame)

    def _why_no_frames(self, question: Question) -> str:
        settings = self.loaded.settings
        if missing := self._cameras.silent(question.cameras):
            return (
                f"no image yet from camera {', '.join(missing)} within {settings.frame_wait:g} s;"
                " is it publishing on the topic in parameter camera_topics?"
            )
        return (
            f"cameras {', '.join(question.cameras)} sent no images within"
            f" {settings.frame_wait:g} s whose stamps lie within {settings.sync_tolerance:g} s"
            " of each other; synchronise their clocks, or change parameter sync_tolerance"
        )

    def _encode(
        self,
        loaded: Loaded,
        question: Question,
        images: Sequence[CameraImage],
        stopping: Callable[[], bool],
    ) -> tuple[list[Encoding], types.StageTimes]:
        """The encoding of each image, and the seconds this took; ``total`` is their sum."""
        encodings: list[Encoding] = []
        spent: list[types.StageTimes] = []
        pipeline = loaded.pipeline
        wanted = pipeline.wants_cut(question.query, len(images))
        # In the inference thread, so that no callback waits for it; each graph is a sign of life.
        pipeline.open_graphs(wanted, stopping)
        for number, (image, cut) in enumerate(zip(images, wanted, strict=True)):
            _require_wanted(question, stopping)
            stored = question.frames[number] if question.frames else None
            region = loaded.regions.get(image.camera) if stored else None
            encoding, times = self.encodings.encode(pipeline, image, stored, region, cut=cut)
            encodings.append(encoding)
            spent.append(times)
        return encodings, encoding_times(spent)

    def _not_yet_seen(
        self, pipeline: Pipeline, question: Question, encodings: list[Encoding]
    ) -> list[Encoding]:
        """What to hand to the pipeline: nothing if a conversation goes on about the same frames,
        which it remembers with all that was computed for them."""
        name, frames = question.query.conversation_id, question.frames
        if not name or not frames or self._talked_about.get(name) != frames:
            return encodings
        return [] if pipeline.conversations.frames(name) else encodings

    def _remember(self, question: Question) -> None:
        name = question.query.conversation_id
        if name:
            self._talked_about[name] = question.frames or ()
            self._talked_about.move_to_end(name)
            while len(self._talked_about) > _CONVERSATIONS:
                self._talked_about.popitem(last=False)

    # Messages --------------------------------------------------------------------------------

    def _streamer(
        self, question: Question, images: Sequence[CameraImage]
    ) -> Callable[[str], None] | None:
        on_topic, reply = self._outputs.partial_wanted, question.reply
        if not on_topic and reply is None:
            return None
        message = self._blank(question, images)
        message.status = msgs.Answer.STATUS_PARTIAL

        def publish(text: str) -> None:
            message.text = text
            if on_topic:
                self._outputs.publish_partial(message)
            if reply is not None:
                reply.partial(message)

        return publish

    def _message(
        self,
        question: Question,
        answer: types.Answer,
        images: Sequence[CameraImage],
        stopping: Callable[[], bool],
    ) -> msgs.Answer:
        headers = [image.header for image in images]
        dropped = self._intake.answered(question)
        message = to_answer(answer, headers, question.cameras, question.sequence, dropped)
        if question.expires_in_s() < 0:
            message.status = msgs.Answer.STATUS_EXPIRED
            message.error_code = msgs.Answer.ERROR_TIMEOUT
            message.error_msg = (
                f"the deadline of {question.deadline_s:g} s passed before the answer was complete"
            )
        elif answer.status is types.Status.CANCELED and stopping():
            message.error_code = msgs.Answer.ERROR_REJECTED
            message.error_msg = _CANCELED
        elif answer.status is types.Status.CANCELED and question.standing:
            message.error_msg = _REMOVED
        return message

    def _blank(self, question: Question, images: Sequence[CameraImage]) -> msgs.Answer:
        message = msgs.Answer(
            query_id=question.query_id,
            sequence=question.sequence,
            model_id=self.loaded.pipeline.manifest.model_id,
        )
        set_frames(message, [image.header for image in images], [i.camera for i in images])
        return message


def _require_wanted(question: Question, stopping: Callable[[], bool]) -> None:
    """Raises CanceledError if the node stops, WithdrawnError if the client no longer asks."""
    if stopping():
        raise CanceledError(_CANCELED)
    if question.canceled():
        raise WithdrawnError(_REMOVED if question.standing else WITHDRAWN)
