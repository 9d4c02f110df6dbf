"""Working memory that one selection after the other uses again.

A fresh array of some megabytes is memory asked of the system page by page, which costs more than
the arithmetic on it: at 576 tokens up to half of a selection's time.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Larger arrays are not held between selections: 576 tokens need 2.7 MB at most, 2880 would 66.
MAX_BYTES = 8 << 20

# Bytes of a cache line and of the widest vector register: a pass over rows that start elsewhere
# reads two lines a load, which takes a fifth to twice as long.
ALIGNMENT = 64

# Bytes of rows worked on at once: they stay in the second-level cache, and their memory is not
# asked of the system, which costs as much as the arithmetic.
BLOCK_BYTES = 1 << 18

_HELD = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An array with undefined contents, valid until this thread asks for ``name`` again."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    held: NDArray[np.uint8] | None = getattr(_HELD, name, None)
    if held is None or held.nbytes < size:
        memory = np.empty(size + ALIGNMENT, np.uint8)
        held = memory[-memory.ctypes.data % ALIGNMENT :]
        if size <= MAX_BYTES:
            setattr(_HELD, name, held)
    array: NDArray[Any] = held[:size].view(dtype).reshape(shape)
    return array


def scratch_rows(name: str, width: int, dtype: Any) -> NDArray[Any]:
    """(rows, width) ``scratch`` of as many rows as are worked on at once."""
    num_rows = max(1, BLOCK_BYTES // (width * np.dtype(dtype).itemsize))
    return scratch(name, (num_rows, width), dtype)
