"""VTW: from one layer on, the language model works without visual tokens."""

from __future__ import annotations

from typing import Any

import torch

from edge_atp.errors import ConfigError
from edge_atp.hf.budget import Keep
from edge_atp.hf.hooks.attention_view import AttentionView
from edge_atp.hf.hooks.decoder import DecoderRule, Kept


class Rule(DecoderRule):
    """All visual tokens leave before ``layer``."""

    def __init__(self, method: Any, keep: Keep | None) -> None:
        if keep is not None:
            raise ConfigError(
                f"vtw drops every visual token at layer {method.layer}; it takes no keep, set layer"
            )
        self._method = method

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """The one layer of the cut."""
        return (self._method.layer,)

    def choose(self, layer: int, view: AttentionView, sample: int, num_visual: int) -> Kept:
        """Nothing stays."""
        return Kept(torch.empty(0, dtype=torch.int64, device=view.visual_rows(sample).device))
