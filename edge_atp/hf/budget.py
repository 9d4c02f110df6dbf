"""The keep budget of ``attach``: a count or a share, per image or per tile."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real

from edge_atp.budget import ratio_to_tokens
from edge_atp.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class Keep:
    """How many visual tokens stay.

    value: an int K (a larger K than there are tokens is an error), or a share in (0, 1].
    per_tile: the budget holds for every tile or frame instead of the whole image or video.
    """

    value: int | float
    per_tile: bool = True

    def __post_init__(self) -> None:
        value = self.value
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ConfigError(f"keep is {value!r}; give a number of tokens or a share in (0, 1]")
        if isinstance(value, Integral) and value < 1:
            raise ConfigError(f"keep is {value}; at least one visual token must stay")
        if not isinstance(value, Integral) and not (math.isfinite(value) and 0.0 < value <= 1.0):
            raise ConfigError(f"keep is {value}; a share must be in (0, 1], a count an int")

    def num_kept(self, num_tokens: int) -> int:
        """K for ``num_tokens`` visual tokens.

        Raises:
            ShapeError: K is larger than that.
        """
        if isinstance(self.value, Integral):
            if self.value > num_tokens:
                raise ShapeError(
                    f"keep is {self.value}, but there are {num_tokens} visual tokens to choose"
                    " from; keep fewer, or give a share in (0, 1]"
                )
            return int(self.value)
        return ratio_to_tokens(self.value, num_tokens)
