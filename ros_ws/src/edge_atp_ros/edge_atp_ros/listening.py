"""A subscription on which no message disappears in silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

# Nothing that has arrived is overwritten by what arrives later (DDS holds up to 5000). What the
# sender itself had to drop, because the node was too busy for too long, DDS reports as lost.
_QOS = QoSProfile(history=HistoryPolicy.KEEP_ALL, reliability=ReliabilityPolicy.RELIABLE)


def listen(
    node: Node,
    kind: type,
    topic: str,
    take: Callable[[bytes], None],
    on_lost: Callable[[int], None],
) -> Subscription:
    """Subscribe, reliably, to serialized messages.

    Args:
        take: called with each message as it arrived.
        on_lost: called with the number of messages that will never arrive.
    """

    def count(event: Any) -> None:
        on_lost(event.total_count_change)

    return node.create_subscription(
        kind,
        topic,
        take,
        _QOS,
        raw=True,
        event_callbacks=SubscriptionEventCallbacks(message_lost=count),
    )
