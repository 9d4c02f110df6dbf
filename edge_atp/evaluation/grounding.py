"""Does the selection keep what the question is about?

A method that merges tokens (pooling, for one) is judged by the patches it names as kept, although
its tokens may hold something of the others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def target_kept(kept: NDArray[np.bool_], target: NDArray[np.bool_]) -> float:
    """Share of the target's patches that were kept.

    Args:
        kept: (N,) bool, patches the language model saw.
        target: (N,) bool, patches of what is asked about; at least one.
    Returns:
        [0, 1].
    """
    return float(kept[target].mean())
