"""Why a client got nothing it may act upon. One class per reason; all are EdgeAtpError."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_atp.errors import EdgeAtpError

if TYPE_CHECKING:
    from edge_atp_ros.client_reply import Reply


class ClientError(EdgeAtpError):
    """Base of everything ``edge_atp_ros.client`` raises."""


class ClosedError(ClientError):
    """The client was closed, or ROS was shut down, before the answer came."""


class NoAnswerError(ClientError):
    """No answer within the client's timeout: no node listens, or it is stuck or gone."""


class UnusableAnswerError(ClientError):
    """An answer came and must not be acted upon. ``reply`` holds it."""

    def __init__(self, message: str, reply: Reply) -> None:
        super().__init__(message)
        self.reply = reply


class RefusedAnswerError(UnusableAnswerError):
    """The node answered with an error; ``reply.answer.error_code`` says which."""


class IncompleteAnswerError(UnusableAnswerError):
    """Cut off, cancelled, or later than its deadline."""


class StaleAnswerError(UnusableAnswerError):
    """It is about a frame that is too old, or was taken before the moment that counts."""


class WrongFrameError(UnusableAnswerError):
    """It is about another camera or frame id than expected, or its parts do not belong together."""


class LowConfidenceError(UnusableAnswerError):
    """The model was not sure enough."""
