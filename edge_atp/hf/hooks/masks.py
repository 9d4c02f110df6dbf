"""The attention mask of one decoder layer whose KV cache has its own length."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch

from edge_atp.errors import BackendUnavailableError
from edge_atp.hf.family import Tensor


@dataclass(frozen=True)
class _LayerLength:
    """The part of a cache's interface that mask creation asks for, for one layer."""

    held: int
    is_compileable: bool = False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.held

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.held

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        # Older releases pass the positions of the queries instead of their number.
        count = query_length if isinstance(query_length, int) else len(query_length)
        return self.held + count, 0


def layer_mask(config: Any, states: Tensor, valid: Tensor, held: int) -> Any:
    """Causal mask in the form the model's attention implementation takes.

    Args:
        config: the language model's.
        states: (B, m, H) rows that enter the layer.
        valid: (B, held + m) bool, keys that are not padding.
        held: keys in the layer's cache.
    """
    try:
        from transformers.masking_utils import create_causal_mask
    except ImportError as error:
        raise BackendUnavailableError(
            "in-LLM pruning needs transformers.masking_utils: install transformers 4.53 or newer"
        ) from error
    arguments: dict[str, Any] = {
        "config": config,
        "attention_mask": None if bool(valid.all()) else valid.long(),
        "past_key_values": _LayerLength(held),
    }
    # The name of the embeddings argument and the query positions differ between releases.
    names = inspect.signature(create_causal_mask).parameters
    arguments["inputs_embeds" if "inputs_embeds" in names else "input_embeds"] = states
    if "cache_position" in names:
        arguments["cache_position"] = torch.arange(
            held, held + states.shape[1], device=states.device
        )
    return create_causal_mask(**arguments)
