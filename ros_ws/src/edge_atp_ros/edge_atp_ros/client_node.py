"""The node that a client has beside its planner's, so that it can spin on its own."""

from __future__ import annotations

import uuid

from rclpy.node import Node
from rclpy.parameter import Parameter


def private_node(node: Node) -> Node:
    """A node beside the planner's, whose callbacks only the client's thread runs."""
    overrides = []
    if node.has_parameter("use_sim_time"):
        overrides.append(node.get_parameter("use_sim_time"))
    return Node(
        f"{node.get_name()}_vlm_client_{uuid.uuid4().hex[:6]}",
        context=node.context,
        namespace=node.get_namespace(),
        parameter_overrides=[Parameter("use_sim_time", value=o.value) for o in overrides],
        use_global_arguments=False,  # a remapped name (__node) is the planner's alone
        enable_rosout=False,
        start_parameter_services=False,
    )
