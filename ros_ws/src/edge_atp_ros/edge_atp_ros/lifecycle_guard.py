"""Keeps a lifecycle node alive when it is asked for a transition its state does not have.

rclpy raises out of the executor in that case, which ends the process (seen with 7.1.6); rclcpp
answers `success: false`, and so do nodes guarded here.
"""

from __future__ import annotations

from typing import Any

from rclpy.lifecycle import LifecycleNode

_SERVICE = "_service_change_state"


def refuse_invalid_transitions(node: LifecycleNode) -> None:
    """Answer an invalid transition request with `success: false` and a warning in the log."""
    service = getattr(node, _SERVICE, None)
    if service is None:  # a later rclpy that may have changed this, and mended the fault
        return
    change_state = service.callback

    def guarded(request: Any, response: Any) -> Any:
        try:
            return change_state(request, response)
        except Exception as error:  # RCLError, which rclpy keeps in a private module
            asked = request.transition.label or request.transition.id
            node.get_logger().warning(f"transition {asked} refused: {error}")
            response.success = False
            return response

    service.callback = guarded
