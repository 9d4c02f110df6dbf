"""From a question to its one final answer: choose the frame, run the pipeline, publish.

Runs in the inference thread. Whatever goes wrong becomes an answer with an error code; nothing
raised here ends the thread.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edge_atp_msgs import msg as msgs
from rclpy.impl.rcutils_logger import RcutilsLogger

from edge_atp import types
from edge_atp.errors import EdgeAtpError
from edge_atp.pipeline import Pipeline
from edge_atp_ros.cameras import CameraImage, Cameras
from edge_atp_ros.convert import set_frames, to_answer, to_mask_array
from edge_atp_ros.error_codes import (
    CanceledError,
    ExpiredError,
    NoFrameError,
    RejectedError,
    StaleFrameError,
    WithdrawnError,
    error_code,
    error_text,
    status,
)
from edge_atp_ros.parameters import NodeSettings
from edge_atp_ros.publishers import Outputs
from edge_atp_ros.questions import Intake, Question

_CANCELED = "the node was deactivated before the answer was complete; ask again"
WITHDRAWN = "cancelled by the client"


@dataclass(frozen=True)
class Loaded:
    """What answers are made with; replaced as a whole when a parameter changes."""

    pipeline: Pipeline
    settings: NodeSettings


class Answerer:
    """Answers questions about the newest frames.

    Args:
        loaded: the pipeline and the node's settings; may be replaced at any time.
        now_ns: the ROS clock.
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
        self._cameras = cameras
        self._intake = intake
        self._outputs = outputs
        self._now_ns = now_ns
        self._logger = logger

    def serve(self, question: Question, stopping: Callable[[], bool]) -> None:
        """Answer one question; publishes exactly one final answer, whatever happens."""
        images: list[CameraImage] = []
        if question.reply is not None:
            question.reply.begun()
        try:
            answer = self._answer(question, images, stopping)
            headers = [image.header for image in images]
            with_scores = self.loaded.settings.publish_scores
            masks = to_mask_array(answer, headers, question.sequence, with_scores)
            message = self._message(question, answer, images, stopping)
        except Exception as error:  # anything: the question is owed an answer
            self.refuse(question, error, images)
            return
        self._deliver(question, message, masks)
        caption = f"{question.query.text}\n{answer.text}"
        self._outputs.publish_pictures(answer.masks, headers, caption)

    def cancel(self, question: Question) -> None:
        """Answer a question that will not be served because the node stops."""
        self.refuse(question, CanceledError(_CANCELED))

    def refuse(
        self, question: Question, error: BaseException, images: Sequence[CameraImage] = ()
    ) -> None:
        """Answer a question with the error that stopped it."""
        if isinstance(error, RejectedError):  # comes in floods
            self._logger.warning(f"{question.query_id}: {error}", throttle_duration_sec=1.0)
        elif isinstance(error, EdgeAtpError):
            self._logger.warning(f"{question.query_id}: {error}")
        else:
            trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            self._logger.error(f"{question.query_id}: unexpected error\n{trace}")
        message = self._blank(question, images)
        message.status = status(error)
        message.error_code = error_code(error)
        message.error_msg = error_text(error)
        message.frames_dropped = self._intake.answered(question)
        message.latency.total = time.perf_counter() - question.accepted_s
        message.latency.queue_wait = message.latency.total
        self._deliver(question, message)

    def _deliver(
        self, question: Question, message: msgs.Answer, masks: msgs.PatchMaskArray | None = None
    ) -> None:
        if not question.claim():  # the watchdog has answered meanwhile
            return
        try:
            if masks is not None:
                self._outputs.publish_masks(masks)
        finally:
            try:
                self._outputs.publish_answer(message)
            finally:
                if question.reply is not None:
                    question.reply.final(message, masks)

    def _answer(
        self, question: Question, images: list[CameraImage], stopping: Callable[[], bool]
    ) -> types.Answer:
        loaded = self.loaded
        self._take(question, images, loaded.settings.frame_wait, stopping)
        newest_age_s = self._check_age(question, images)
        begun_s = time.perf_counter()
        frames = [image.frame() for image in images]
        conversion_s = time.perf_counter() - begun_s
        answer = loaded.pipeline.answer(
            question.query,
            frames,
            accepted_s=question.accepted_s,
            frame_age_s=newest_age_s,
            on_text=self._streamer(question, images),
            should_stop=lambda: stopping() or question.unwanted(),
        )
        # The pipeline counts all time before it as waiting; the conversion is preprocessing.
        times = replace(
            answer.times,
            queue_wait=answer.times.queue_wait - conversion_s,
            preprocess=answer.times.preprocess + conversion_s,
        )
        return replace(answer, times=times)

    def _take(
        self,
        question: Question,
        images: list[CameraImage],
        frame_wait_s: float,
        stopping: Callable[[], bool],
    ) -> None:
        """Append the newest image of each camera of the question.

        Raises:
            NoFrameError: a camera has sent none in time.
            ExpiredError: the deadline has passed.
            CanceledError: the node stops.
        """
        if question.images:
            images.extend(question.images)
            return
        wait_s = min(frame_wait_s, question.deadline_s or frame_wait_s)
        missing = self._cameras.wait(
            question.cameras,
            question.accepted_s + wait_s,
            lambda: stopping() or question.canceled(),
        )
        if stopping():
            raise CanceledError(_CANCELED)
        if question.canceled():
            raise WithdrawnError(WITHDRAWN)
        if question.expires_in_s() <= 0:
            raise ExpiredError(f"the deadline of {question.deadline_s:g} s passed while waiting")
        if missing:
            raise NoFrameError(
                f"no image yet from camera {', '.join(missing)} within {frame_wait_s:g} s; is it"
                " publishing on the topic in parameter camera_topics?"
            )
        images.extend(self._cameras.newest(name) for name in question.cameras)

    def _check_age(self, question: Question, images: Sequence[CameraImage]) -> float:
        """Age of the newest image in seconds.

        Raises:
            StaleFrameError: the oldest image is older than the question allows.
        """
        now_ns = self._now_ns()
        ages_s = {image.camera: (now_ns - image.stamp_ns) / 1e9 for image in images}
        camera = max(ages_s, key=lambda name: ages_s[name])
        limit_s = question.max_frame_age_s
        if 0 < limit_s < ages_s[camera]:
            raise StaleFrameError(
                f"the newest image of camera {camera} is {ages_s[camera]:.3f} s old; at most"
                f" {limit_s:g} s (max_frame_age)"
            )
        return min(ages_s.values())

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
        return message

    def _blank(self, question: Question, images: Sequence[CameraImage]) -> msgs.Answer:
        message = msgs.Answer(
            query_id=question.query_id,
            sequence=question.sequence,
            model_id=self.loaded.pipeline.manifest.model_id,
        )
        set_frames(message, [image.header for image in images], [i.camera for i in images])
        return message
