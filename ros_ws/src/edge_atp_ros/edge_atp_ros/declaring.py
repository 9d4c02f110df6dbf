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
    (tuple, str): ParameterType.PARAMETER_STRING_ARRAY,
    (tuple, float): ParameterType.PARAMETER_DOUBLE_ARRAY,
    (tuple, int): ParameterType.PARAMETER_INTEGER_ARRAY,
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
        default: also gives the type: bool, int, float, str, a tuple of str, or a tuple of
            float or int that is not empty.
        text: help, shown by `ros2 param describe`.
        low, high: inclusive range of a number.
        read_only: settled when the node starts.
    Returns:
        The value given at the start, or the default; a tuple for arrays.
    Raises:
        StartError: the value given at the start is of another type or out of range.
    """
    array = isinstance(default, tuple)
    kind = (tuple, type(default[0])) if array and default else type(default)
    descriptor = ParameterDescriptor(
        name=name, type=_TYPES[kind], description=text, read_only=read_only
    )
    if low is not None and high is not None:
        if isinstance(default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
        else:
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high))]
    try:
        value = node.declare_parameter(name, list(default) if array else default, descriptor).value
    except Exception as error:  # rclpy's errors on values share no base class below Exception
        raise StartError(f"parameter {name}: {error}") from error
    return tuple(value) if array else value
