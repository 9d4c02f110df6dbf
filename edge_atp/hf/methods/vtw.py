"""VTW: from one layer on, the language model works without visual tokens.

Which layer is found on a calibration set: ``choose_layer(calibrate(model, batches, layers), ...)``
with ``edge_atp.pruning.vtw.choose_layer``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from edge_atp.errors import ConfigError
from edge_atp.hf.budget import Keep
from edge_atp.hf.family import Tensor
from edge_atp.hf.hooks.attention_view import AttentionView
from edge_atp.hf.hooks.decoder import DecoderRule, Kept
from edge_atp.pruning.vtw import kl_divergence


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


def calibrate(
    model: Any, batches: Iterable[Mapping[str, Any]], layers: Sequence[int]
) -> dict[int, float]:
    """Mean divergence of the next token per withdrawal layer, for ``choose_layer``.

    Args:
        model: a loaded VLM without anything attached.
        batches: processor outputs, one or several prompts each.
        layers: candidates, each in [1, number of decoder layers).
    Returns:
        layer -> mean KL(dense || withdrawn) in nats over all prompts.
    Source: Lin et al., sec. 3: the smallest layer whose divergence is below a threshold.
    """
    # Imported here: attach finds this module by name.
    from edge_atp.hf.attach import attach, detach

    prompts = list(batches)
    dense = [_last_logits(model, batch) for batch in prompts]
    divergences = {}
    for layer in layers:
        attach(model, None, "vtw", layer=layer)
        try:
            withdrawn = [_last_logits(model, batch) for batch in prompts]
        finally:
            detach(model)
        pairs = zip(torch.cat(dense), torch.cat(withdrawn), strict=True)
        values = [kl_divergence(before, after) for before, after in pairs]
        divergences[layer] = sum(values) / len(values)
    return divergences


def _last_logits(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """(B, V) float32 logits behind each prompt's last token, on whichever side padding is."""
    with torch.no_grad():
        logits: Tensor = model(**batch).logits
    mask = batch.get("attention_mask")
    if mask is None:
        return logits[:, -1].float()
    # Visual tokens that left stood in front of padding on the right: count from the end.
    behind = (mask.flip(1).cumsum(1) == 0).sum(1)
    rows = torch.arange(len(logits), device=logits.device)
    return logits[rows, logits.shape[1] - 1 - behind.to(logits.device)].float()
