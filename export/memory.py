"""Does something of that size fit into this machine's memory?"""

from __future__ import annotations

import os


def memory_bytes() -> tuple[int, int] | None:
    """(available, total) bytes of this machine's memory; None where it cannot be told."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page
    except (ValueError, OSError):
        return None


def fits(num_bytes: int) -> bool:
    """False only where it clearly does not: pages of the file cache count as used there."""
    known = memory_bytes()
    return known is None or num_bytes <= max(known[0], known[1] * 9 // 10)
