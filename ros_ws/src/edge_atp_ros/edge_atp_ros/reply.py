"""Where a question's answers go besides the topics: back to the client that holds the goal."""

from __future__ import annotations

from typing import Protocol

from edge_atp_msgs import msg as msgs


class Reply(Protocol):
    """One client waiting for one question; called from the inference thread."""

    def begun(self) -> None:
        """Work on the question begins."""

    def canceled(self) -> bool:
        """Whether the client no longer wants the answer; asked between tokens."""

    def partial(self, message: msgs.Answer) -> None:
        """The answer so far."""

    def final(self, message: msgs.Answer, masks: msgs.PatchMaskArray | None) -> None:
        """The one final answer, and its masks unless it reports an error."""
