"""Declares one ROS parameter with its help text, type and range. Light: no imaging, no model."""

from __future__ import annotations

from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    ParameterType,
)
from rclpy.node import Node

from edge_atp_ros.process import StartError

_TYPES = {
    bool: ParameterType.PARAMETER_BOOL,
    int: ParameterType.PARAMETER_INTEGER,
    float: ParameterType.PARAMETER_DOUBLE,
    str: ParameterType.PARAMETER_STRING,
    tuple: ParameterType.PARAMETER_STRING_ARRAY,
}


def declare(
    node: Node,
    name: str,
    default: Any,
    text: str,
    low: float | None = None,
    high: float | None = None,
    *,
    read_only: bool = True,
) -> Any:
    """Declare a parameter and return its value.

    Args:
        default: also gives the type: bool, int, float, str, or a tuple of str.
        text: help, shown by `ros2 param describe`.
        low, high: inclusive range of a number.
        read_only: settled when the node starts.
    Returns:
        The value given at the start, or the default; a tuple for string arrays.
    Raises:
        StartError: the value given at the start is of another type or out of range.
    """
    descriptor = ParameterDescriptor(
        name=name, type=_TYPES[type(default)], description=text, read_only=read_only
    )
    if low is not None and high is not None:
        if isinstance(default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
        else:
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high))]
    array = isinstance(default, tuple)
    try:
        value = node.declare_parameter(name, list(default) if array else default, descriptor).value
    except Exception as error:  # rclpy's errors on values share no base class below Exception
        raise StartError(f"parameter {name}: {error}") from error
    return tuple(value) if array else value
