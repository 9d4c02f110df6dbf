"""Joins each answer with its masks, which travel on a topic of their own. Knows no node.

The node publishes the masks first, but two topics have no common order; and masks of answers that
nobody here waits for must not pile up.
"""

from __future__ import annotations

import time
from collections import OrderedDict

from edge_atp_msgs.msg import Answer, PatchMaskArray

from edge_atp_ros.client_reply import Reply

_KEPT_MASKS = 256
_WITHOUT_MASKS = (Answer.STATUS_ERROR, Answer.STATUS_EXPIRED, Answer.STATUS_CANCELED)

Key = tuple[str, int]


class MaskJoiner:
    """Holds what came first until its other half comes. For one thread.

    Args:
        wait_s: how long an answer waits for its masks before it is passed on without.
    """

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._masks: OrderedDict[Key, PatchMaskArray] = OrderedDict()
        self._answers: OrderedDict[Key, tuple[float, Answer]] = OrderedDict()

    def add_answer(self, answer: Answer) -> Reply | None:
        """The reply, if nothing is missing: errors have no masks."""
        key = (answer.query_id, answer.sequence)
        masks = self._masks.pop(key, None)
        if masks is not None or answer.status in _WITHOUT_MASKS:
            return Reply(answer, masks)
        self._answers[key] = (time.monotonic() + self._wait_s, answer)
        return None

    def add_masks(self, masks: PatchMaskArray) -> Reply | None:
        """The reply, if its answer has come."""
        key = (masks.query_id, masks.sequence)
        waiting = self._answers.pop(key, None)
        if waiting is not None:
            return Reply(waiting[1], masks)
        self._masks[key] = masks
        if len(self._masks) > _KEPT_MASKS:
            self._masks.popitem(last=False)
        return None

    def overdue(self) -> list[Reply]:
        """Replies whose masks have not come in time."""
        now_s = time.monotonic()
        keys = [key for key, (until_s, _) in self._answers.items() if now_s >= until_s]
        return [Reply(self._answers.pop(key)[1]) for key in keys]
