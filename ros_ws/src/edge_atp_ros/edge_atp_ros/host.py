"""This process on its machine: memory, garbage collections and temperatures. Linux only.

Nothing here raises: a value that cannot be read is left out.
"""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path

THERMAL_ZONES = Path("/sys/class/thermal")
_STATM = Path("/proc/self/statm")
# A Jetson AGX Orin has 10 zones; a server's board may list one per core.
_MOST_ZONES = 16


def resident_bytes(statm: Path = _STATM) -> int | None:
    """Resident set of this process, or None where /proc does not exist."""
    try:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def return_free_memory() -> None:
    """Hand memory that is no longer used back to the system; glibc keeps most of it otherwise."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # musl, macOS
        return
    trim(0)


def spare_what_is_loaded() -> None:
    """Keep later garbage collections from going through all that exists now.

    With the node's libraries a full one holds every thread up for 0.2 to 0.3 s.
    """
    gc.collect()
    gc.freeze()


def free_what_was_loaded() -> None:
    """Free memory that is no longer used, that of objects in reference cycles included, such as an
    engine's sessions."""
    gc.unfreeze()
    gc.collect()
    return_free_memory()


def temperatures_c(zones: Path = THERMAL_ZONES) -> dict[str, float]:
    """Temperatures in degrees Celsius by zone, such as "cpu-thermal" or "gpu-thermal".

    Args:
        zones: folder with one thermal_zone<n>/{type,temp} per sensor.
    Returns:
        Empty without sensors. A zone whose sensor is powered down (its read fails on a Jetson
        while the GPU sleeps) is left out. Zones of one type are numbered from the second on.
    """
    found: dict[str, float] = {}
    for zone in sorted(zones.glob("thermal_zone*"), key=_number)[:_MOST_ZONES]:
        try:
            name = (zone / "type").read_text().strip() or zone.name
            celsius = int((zone / "temp").read_text()) / 1000
        except (OSError, ValueError):
            continue
        count = sum(known.partition("#")[0] == name for known in found)
        found[f"{name}#{count + 1}" if count else name] = celsius
    return found


def _number(zone: Path) -> int:
    digits = zone.name.removeprefix("thermal_zone")
    return int(digits) if digits.isdigit() else -1
