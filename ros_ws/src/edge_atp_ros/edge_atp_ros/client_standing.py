"""A client's side of standing questions: sets and removes them at the VLM node.

For any thread but the one that spins ``node``.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from edge_atp_msgs.msg import Query
from edge_atp_msgs.srv import RemoveQuery, SetQuery
from rclpy.node import Node

from edge_atp_ros.client_errors import ClientError, NoAnswerError


class StandingQuestions:
    """Calls the VLM node's services.

    Args:
        node: spun elsewhere.
        set_query, remove_query: resolved names of the services.
    """

    def __init__(self, node: Node, set_query: str, remove_query: str) -> None:
        self._set = node.create_client(SetQuery, set_query)
        self._remove = node.create_client(RemoveQuery, remove_query)

    def set(self, query: Query, timeout_s: float) -> str:
        """Add or replace a standing question; returns its query_id.

        Raises:
            NoAnswerError: the service is not there, or silent.
            ClientError: the node refused; with its reason.
        """
        query.mode = Query.MODE_STANDING
        response = _call(self._set, SetQuery.Request(query=query), timeout_s)
        return str(response.query_id)

    def remove(self, query_id: str, timeout_s: float) -> None:
        """Remove a standing question.

        Raises:
            NoAnswerError, ClientError: as ``set``.
        """
        _call(self._remove, RemoveQuery.Request(query_id=query_id), timeout_s)


def _call(client: Any, request: Any, timeout_s: float) -> Any:
    until_s = time.monotonic() + timeout_s
    if not client.wait_for_service(timeout_s):
        raise NoAnswerError(f"no service {client.srv_name} after {timeout_s:g} s; is the node up?")
    done = threading.Event()
    future = client.call_async(request)
    future.add_done_callback(lambda _: done.set())
    if not done.wait(max(0.0, until_s - time.monotonic())):
        client.remove_pending_request(future)
        raise NoAnswerError(f"{client.srv_name} has not responded within {timeout_s:g} s")
    response = future.result()
    if not response.success:
        raise ClientError(f"{client.srv_name} refused: {response.error_msg}")
    return response
