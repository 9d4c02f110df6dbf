"""Why the node gives a question no answer: its own refusals, beside the errors of the core.

Knows nothing of ROS; ``error_codes`` says which ``Answer.error_code`` each of them becomes.
"""

from __future__ import annotations

from edge_atp.errors import EdgeAtpError


class RejectedError(EdgeAtpError):
    """The queue is full, or the node is not active."""


class IdInUseError(EdgeAtpError):
    """A question of this id is held already: waiting, being answered, or standing."""


class NoFrameError(EdgeAtpError):
    """A camera of the question has not sent an image, or none that matches the other cameras'."""


class StaleFrameError(EdgeAtpError):
    """The newest frame is older than the question allows."""


class CanceledError(EdgeAtpError):
    """The node was deactivated while the question waited or was being answered."""


class WithdrawnError(CanceledError):
    """The client cancelled the question."""


class StuckError(EdgeAtpError):
    """The inference engine showed no sign of life for too long."""


class ExpiredError(EdgeAtpError):
    """The question's deadline passed, or cannot be met."""
