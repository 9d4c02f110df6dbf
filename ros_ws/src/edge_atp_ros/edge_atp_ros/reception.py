"""Where questions come in: accepted into the queue, or answered with the reason they are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from edge_atp_msgs.msg import Query as QueryMessage

from edge_atp_ros.answering import WITHDRAWN, Answerer
from edge_atp_ros.frames import CameraImage
from edge_atp_ros.parameters import Settings
from edge_atp_ros.questions import NO_SEQUENCE, Intake, Question
from edge_atp_ros.refusals import IdInUseError, WithdrawnError
from edge_atp_ros.reply import Reply
from edge_atp_ros.worker import Worker


class Reception:
    """Takes questions from topics, goals, services and files.

    Args:
        settings: the node's parameters as they are now.
    """

    def __init__(
        self,
        intake: Intake,
        answerer: Answerer,
        worker: Worker,
        settings: Callable[[], Settings],
    ) -> None:
        self._intake = intake
        self._answerer = answerer
        self._worker = worker
        self._settings = settings

    def ask(
        self,
        message: QueryMessage,
        reply: Reply | None = None,
        images: Sequence[CameraImage] = (),
    ) -> Question:
        """Accept a question asked once; whatever becomes of it, it gets one final answer."""
        question = self._intake.identify(message, self._worker.holds)
        question = replace(question, reply=reply, images=tuple(images))
        try:
            if question.sequence == NO_SEQUENCE:
                raise IdInUseError(
                    f"query_id {question.query_id!r} is in use by a question that is still"
                    " unanswered or standing; give each question its own, or none. This is not"
                    " the answer to that question"
                )
            question = self._admitted(message, question, standing=False)
            self._worker.submit(question)
        except Exception as error:  # anything: the question is owed an answer
            self._answerer.refuse(question, error)
        return question

    def withdraw(self, question: Question) -> None:
        """Answer a question CANCELED if it still waits; a running one notices by itself."""
        if self._worker.withdraw(question):
            self._answerer.refuse(question, WithdrawnError(WITHDRAWN))

    def admit_standing(self, message: QueryMessage) -> Question:
        """Check a standing question and give it an id; holding it is up to the caller.

        Raises:
            EdgeAtpError: it cannot be answered as asked; names the field and its value.
        """
        return self._admitted(message, self._intake.identify(message), standing=True)

    def _admitted(self, message: QueryMessage, question: Question, standing: bool) -> Question:
        settings = self._settings()
        question = self._intake.accept(
            message,
            question,
            settings.node.max_frame_age,
            settings.pipeline.max_new_tokens,
            standing=standing,
        )
        pipeline = self._answerer.loaded.pipeline
        pipeline.check(question.query, num_frames=len(question.cameras))
        return question
