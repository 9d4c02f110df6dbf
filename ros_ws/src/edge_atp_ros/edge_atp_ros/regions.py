"""The part of each camera's image that questions are about: parameter ``cameras.<name>.roi``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_atp.errors import ConfigError
from edge_atp.types import SourceRegion

WHOLE = (0, 0, 0, 0)


def parameter_name(camera: str) -> str:
    """Name of a camera's parameter."""
    return f"cameras.{camera}.roi"


def parse_region(name: str, values: Sequence[Any]) -> SourceRegion | None:
    """[x, y, width, height] in pixels of the image, None for all of it.

    Args:
        name: of the parameter, for the message.
    Raises:
        ConfigError: not four integers, negative, or without area.
    """
    numbers = [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]
    if len(values) != 4 or len(numbers) != 4:
        raise ConfigError(
            f"{name} is {list(values)}; give [x, y, width, height] in pixels, or {list(WHOLE)} for"
            " the whole image"
        )
    if tuple(numbers) == WHOLE:
        return None
    region = SourceRegion(*numbers)
    if region.width == 0 or region.height == 0:
        raise ConfigError(
            f"{name} is {numbers}, without area: width and height must be at least 1 pixel"
        )
    return region


def parse_regions(cameras: Sequence[str], values: Mapping[str, Any]) -> dict[str, SourceRegion]:
    """Regions of those cameras that have one.

    Args:
        values: of parameters by name; a camera without one has no region.
    Raises:
        ConfigError: see ``parse_region``.
    """
    regions = {}
    for camera in cameras:
        name = parameter_name(camera)
        region = parse_region(name, values.get(name, WHOLE))
        if region is not None:
            regions[camera] = region
    return regions
