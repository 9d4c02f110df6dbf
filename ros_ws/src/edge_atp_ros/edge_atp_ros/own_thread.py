"""A thread of its own for some of a node's callbacks, beside the executor that spins the node.

With cameras and questions flooding in, the node's executor comes round to each service only after
all images and questions that are ready. What must be quick at all times is served here instead.
rclpy gives a node to one executor as a whole, so the division is made by callback group: each
executor asks the group, and the group answers according to the thread that asks.
"""

from __future__ import annotations

import threading
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.task import Future


class OwnThread(CallbackGroup):
    """A callback group whose callbacks run in a thread of its own, one after the other.

    Give it to ``create_service(..., callback_group=...)``, then ``start``; ``stop`` before the
    node is destroyed.
    """

    def __init__(self, node: Node, name: str) -> None:
        super().__init__()
        self._executor = _GroupExecutor(node, self)
        self._stopped = Future()
        self._thread = threading.Thread(target=self._spin, name=name, daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a callback under way is finished."""
        self._stopped.set_result(None)
        if self._thread.is_alive():
            self._thread.join()
        self._executor.shutdown()

    def can_execute(self, _entity: Any) -> bool:
        """Whether the asking thread is the one that runs these callbacks."""
        return threading.current_thread() is self._thread

    def beginning_execution(self, entity: Any) -> bool:
        """As ``can_execute``: callbacks of one thread never overlap."""
        return self.can_execute(entity)

    def ending_execution(self, entity: Any) -> None:
        """Nothing to give back."""

    def _spin(self) -> None:
        try:
            self._executor.spin_until_future_complete(self._stopped)
        except ExternalShutdownException:  # the context went first
            return


class _GroupExecutor(SingleThreadedExecutor):
    """Runs the callbacks of one group of a node that another executor spins."""

    def __init__(self, node: Node, group: CallbackGroup) -> None:
        super().__init__(context=node.context)
        self._served = node
        self._group = group

    def get_nodes(self) -> list[Node]:
        # Adding the node would take it away from its executor.
        return [self._served]

    def can_execute(self, entity: Any) -> bool:
        return entity.callback_group is self._group and super().can_execute(entity)
