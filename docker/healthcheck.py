"""Is the VLM node alive and active? Exit status 0 when its diagnostics say so, else 1."""

import sys
import time

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

WAIT_S = 8.0


def main() -> int:
    """Wait for one report of the node that is no error."""
    rclpy.init()
    node = rclpy.create_node("edge_atp_healthcheck")
    healthy = []

    def on_diagnostics(message: DiagnosticArray) -> None:
        own = [status for status in message.status if "vlm_node" in status.name]
        if own and all(status.level != DiagnosticStatus.ERROR for status in own):
            healthy.append(message)

    node.create_subscription(DiagnosticArray, "/diagnostics", on_diagnostics, 10)
    deadline = time.monotonic() + WAIT_S
    while not healthy and time.monotonic() < deadline:
        rclpy.spin_once(node, timeout_sec=0.2)
    node.destroy_node()
    rclpy.shutdown()
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
