"""An answer with its masks, and the checks an answer must pass before a robot acts upon it."""

from __future__ import annotations

from dataclasses import dataclass

from edge_atp_msgs.msg import Answer, PatchMaskArray

from edge_atp.errors import ConfigError
from edge_atp_ros.client_errors import (
    IncompleteAnswerError,
    LowConfidenceError,
    RefusedAnswerError,
    StaleAnswerError,
    UnusableAnswerError,
    WrongFrameError,
)
from edge_atp_ros.convert import to_ns

_INCOMPLETE = {
    Answer.STATUS_PARTIAL: "only a part of the answer",
    Answer.STATUS_TRUNCATED: "cut off at max_new_tokens",
    Answer.STATUS_CANCELED: "canceled",
    Answer.STATUS_EXPIRED: "later than its deadline",
}


@dataclass(frozen=True)
class Reply:
    """A final answer and the masks that belong to it.

    answer: as the node published it.
    masks: joined by query_id and sequence; None where none came (errors have none).
    question: the text that was asked; "" for answers to somebody else's question.
    """

    answer: Answer
    masks: PatchMaskArray | None = None
    question: str = ""

    @property
    def text(self) -> str:
        """The answer's text, without surrounding blanks."""
        return str(self.answer.text).strip()

    @property
    def confidence(self) -> float:
        """[0, 1], of the kind ``answer.confidence_kind``."""
        return float(self.answer.confidence)

    @property
    def query_id(self) -> str:
        """The question's id."""
        return str(self.answer.query_id)

    @property
    def stamp_ns(self) -> int:
        """Capture time of the newest frame the answer is about, by the camera's clock."""
        return to_ns(self.answer.header.stamp)

    @property
    def oldest_stamp_ns(self) -> int:
        """Capture time of the oldest of its frames."""
        return min((to_ns(stamp) for stamp in self.answer.frame_stamps), default=self.stamp_ns)

    def age_s(self, now_ns: int) -> float:
        """Seconds since its oldest frame was taken."""
        return (now_ns - self.oldest_stamp_ns) / 1e9


@dataclass(frozen=True)
class AnswerGuard:
    """What an answer must satisfy; a value left at its default is not checked.

    max_age_s: oldest frame acted upon, at the time of the check.
    min_confidence: least confidence, [0, 1].
    frame_id: the frame the image must be from.
    cameras: the cameras the answer must be about, in this order.
    needs_masks: the mask must have come, and be of the answer's frame.
    max_future_s: how far a stamp may lie ahead of this clock. More means that two clocks differ
        or one has jumped, and no age can be told then. Checked whenever max_age_s is.
    """

    max_age_s: float = 0.0
    min_confidence: float = 0.0
    frame_id: str = ""
    cameras: tuple[str, ...] = ()
    needs_masks: bool = False
    max_future_s: float = 0.1

    def __post_init__(self) -> None:
        for name in ("max_age_s", "max_future_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name):g}; it must not be negative")
        if not 0 <= self.min_confidence <= 1:
            raise ConfigError(f"min_confidence is {self.min_confidence:g}; it must be in [0, 1]")

    def check(self, reply: Reply, now_ns: int, newer_than_ns: int = 0) -> Reply:
        """Return the reply if it may be acted upon.

        Args:
            reply: answer and masks.
            now_ns: the ROS clock.
            newer_than_ns: the frames must have been taken after this moment, such as the end of
                the robot's last motion; 0: any.
        Raises:
            UnusableAnswerError: one of its subclasses, by what is wrong.
        """
        for found in (
            _status_fault(reply),
            self._frame_fault(reply),
            self._age_fault(reply, now_ns, newer_than_ns),
            self._confidence_fault(reply),
        ):
            if found is not None:
                raise found
        return reply

    def _frame_fault(self, reply: Reply) -> UnusableAnswerError | None:
        answer, masks = reply.answer, reply.masks
        if self.frame_id and answer.header.frame_id != self.frame_id:
            return WrongFrameError(
                f"the answer is about frame {answer.header.frame_id!r}, not {self.frame_id!r}",
                reply,
            )
        if self.cameras and tuple(answer.cameras) != self.cameras:
            return WrongFrameError(
                f"the answer is about camera {', '.join(answer.cameras)}, not"
                f" {', '.join(self.cameras)}",
                reply,
            )
        if self.needs_masks and masks is None:
            return WrongFrameError("the answer's mask did not arrive", reply)
        if masks is not None and masks.header != answer.header:
            return WrongFrameError("the mask is about another frame than the answer", reply)
        return None

    def _age_fault(
        self, reply: Reply, now_ns: int, newer_than_ns: int
    ) -> UnusableAnswerError | None:
        age_s = reply.age_s(now_ns)
        if newer_than_ns and reply.oldest_stamp_ns < newer_than_ns:
            early_s = (newer_than_ns - reply.oldest_stamp_ns) / 1e9
            return StaleAnswerError(
                f"the image was taken {early_s:.2f} s before the moment that counts", reply
            )
        if not self.max_age_s:
            return None
        if age_s > self.max_age_s:
            return StaleAnswerError(
                f"the image is {age_s:.1f} s old, more than {self.max_age_s:g} s", reply
            )
        if -age_s > self.max_future_s:
            return StaleAnswerError(
                f"the image's stamp is {-age_s:.1f} s ahead of this clock, so its age is unknown:"
                " synchronise the clocks, or set use_sim_time on both sides or on none",
                reply,
            )
        return None

    def _confidence_fault(self, reply: Reply) -> UnusableAnswerError | None:
        if reply.confidence < self.min_confidence:
            return LowConfidenceError(
                f"confidence {reply.confidence:.2f} is below {self.min_confidence:g}", reply
            )
        return None


def _status_fault(reply: Reply) -> UnusableAnswerError | None:
    answer = reply.answer
    if answer.status == Answer.STATUS_FINAL:
        return None
    if answer.status == Answer.STATUS_ERROR:
        return RefusedAnswerError(answer.error_msg or f"error {answer.error_code}", reply)
    kind = _INCOMPLETE.get(answer.status, "unknown")
    return IncompleteAnswerError(
        answer.error_msg or f"status {answer.status}: {kind} ({answer.text!r})", reply
    )
