"""Every error's ``Answer.error_code``, status and message; the node's own are in ``refusals``."""

from __future__ import annotations

from edge_atp_msgs.msg import Answer

from edge_atp import errors
from edge_atp_ros.refusals import (
    CanceledError,
    ExpiredError,
    IdInUseError,
    NoFrameError,
    RejectedError,
    StaleFrameError,
    StuckError,
    WithdrawnError,
)

# Looked up along the error's class hierarchy, so a subclass needs an entry only to differ.
_CODES: dict[type[BaseException], int] = {
    RejectedError: Answer.ERROR_REJECTED,
    IdInUseError: Answer.ERROR_ID_IN_USE,
    CanceledError: Answer.ERROR_REJECTED,
    WithdrawnError: Answer.ERROR_NONE,
    StuckError: Answer.ERROR_TIMEOUT,
    NoFrameError: Answer.ERROR_NO_FRAME,
    StaleFrameError: Answer.ERROR_STALE_FRAME,
    ExpiredError: Answer.ERROR_TIMEOUT,
    errors.InvalidQueryError: Answer.ERROR_INVALID_QUERY,
    errors.ConfigError: Answer.ERROR_INVALID_QUERY,
    errors.BudgetExceededError: Answer.ERROR_INVALID_QUERY,
    errors.MissingSignalError: Answer.ERROR_INVALID_QUERY,
    errors.ImageError: Answer.ERROR_UNSUPPORTED_ENCODING,
    errors.OutOfMemoryError: Answer.ERROR_OUT_OF_MEMORY,
    MemoryError: Answer.ERROR_OUT_OF_MEMORY,
    BaseException: Answer.ERROR_BACKEND,
}


def error_code(error: BaseException) -> int:
    """``Answer.ERROR_*`` of an error; anything unforeseen is ERROR_BACKEND."""
    return next(_CODES[cls] for cls in type(error).__mro__ if cls in _CODES)


def status(error: BaseException) -> int:
    """``Answer.STATUS_*`` of the answer that reports the error."""
    if isinstance(error, CanceledError):
        return Answer.STATUS_CANCELED
    return Answer.STATUS_EXPIRED if isinstance(error, ExpiredError) else Answer.STATUS_ERROR


def error_text(error: BaseException) -> str:
    """Message for people; an error that edge_atp did not raise itself also names its class."""
    text = str(error) or "no further information"
    return text if isinstance(error, errors.EdgeAtpError) else f"{type(error).__name__}: {text}"
