"""The services ``~/set_query``, ``~/remove_query`` and ``~/list_queries``.

They are there for as long as the node is, and say so where it holds nothing yet. Listing has a
thread of its own, so that it answers at once however much the node has to do.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from edge_atp_msgs.srv import ListQueries, RemoveQuery, SetQuery
from rclpy.node import Node

from edge_atp.errors import EdgeAtpError
from edge_atp_ros.error_codes import error_code, error_text
from edge_atp_ros.own_thread import OwnThread
from edge_atp_ros.refusals import RejectedError
from edge_atp_ros.standing import StandingQuestions


class StandingServices:
    """Serves the three services.

    Args:
        node: the node they belong to.
        standing: the standing questions, None while no model is loaded.
    """

    def __init__(self, node: Node, standing: Callable[[], StandingQuestions | None]) -> None:
        self._node = node
        self._standing = standing
        node.create_service(SetQuery, "~/set_query", self._set)
        node.create_service(RemoveQuery, "~/remove_query", self._remove)
        self._listing = OwnThread(node, "listing")
        node.create_service(ListQueries, "~/list_queries", self._list, callback_group=self._listing)
        self._listing.start()

    def close(self) -> None:
        """End the thread; before the node is destroyed."""
        self._listing.stop()

    def _set(self, request: SetQuery.Request, response: SetQuery.Response) -> Any:
        def act(standing: StandingQuestions) -> None:
            response.query_id, response.replaced = standing.set(request.query)

        return self._answer(response, act)

    def _remove(self, request: RemoveQuery.Request, response: RemoveQuery.Response) -> Any:
        return self._answer(response, lambda standing: standing.remove(request.query_id))

    def _list(self, _request: ListQueries.Request, response: ListQueries.Response) -> Any:
        def act(standing: StandingQuestions) -> None:
            response.queries = standing.statuses()

        return self._answer(response, act)

    def _answer(self, response: Any, act: Callable[[StandingQuestions], None]) -> Any:
        """Act, and tell in the response whether and why not; an error must not end the node."""
        try:
            standing = self._standing()
            if standing is None:
                raise RejectedError("the node is not configured; configure it and ask again")
            act(standing)
            response.success = True
        except Exception as error:
            if not isinstance(error, EdgeAtpError):
                self._node.get_logger().error(f"service failed\n{traceback.format_exc()}")
            response.success = False
            response.error_code = error_code(error)
            response.error_msg = error_text(error)
        return response
