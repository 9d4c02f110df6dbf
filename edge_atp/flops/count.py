"""FLOPs and bytes of each part of a vision-language model, in one of two conventions.

``papers``: what published tables count. Attention is not causal (4 n^2 d a layer), the language
    model's head runs at every position, so LLM = 2 n [L (4 d^2 + 3 d m) + d V] + 4 n^2 d L.
``engine``: what a good engine does. Causal attention, the head at the last position only, and
    the patch embedding counted.

A multiply-add is two operations. Norms, activations, softmax and embedding look-ups are left out
of both (under 1 %). Knows nothing of time: FLOPs are not latency.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from edge_atp.errors import ConfigError
from edge_atp.flops.models import ModelSpec, Transformer

CONVENTIONS = ("papers", "engine")


def layer_flops(spec: Transformer, attention_tokens: int, mlp_tokens: int, causal: bool) -> float:
    """One transformer layer.

    Args:
        spec: widths.
        attention_tokens: tokens that attend (and are attended to).
        mlp_tokens: tokens that go through the MLP.
        causal: count only the lower triangle of the attention matrix.
    """
    queries = spec.heads * spec.head_width
    keys = spec.kv_heads * spec.head_width
    projections = 2.0 * attention_tokens * spec.width * (2 * queries + 2 * keys)
    pairs = attention_tokens * (attention_tokens + 1) / 2 if causal else attention_tokens**2
    mlp = 2.0 * mlp_tokens * (3 if spec.gated else 2) * spec.width * spec.mlp_width
    return projections + 4.0 * pairs * queries + mlp


def vision_flops(
    model: ModelSpec, encoder_tokens: Sequence[tuple[int, int]] = (), convention: str = "papers"
) -> float:
    """The ViT over all tiles of one image.

    Args:
        model: its vision tower runs ``model.vision.layers`` layers.
        encoder_tokens: (attention, MLP) patches of each layer, one tile; empty for all of them.
        convention: "papers" or "engine" (which adds the patch embedding).
    Raises:
        ConfigError: not one entry a layer.
    """
    extra = 1 if model.has_cls else 0
    per_layer = list(encoder_tokens) or [(model.patches, model.patches)] * model.vision.layers
    if len(per_layer) != model.vision.layers:
        raise ConfigError(
            f"encoder_tokens has {len(per_layer)} entries; {model.name} runs"
            f" {model.vision.layers} ViT layers"
        )
    flops = sum(
        layer_flops(model.vision, attention + extra, mlp + extra, causal=False)
        for attention, mlp in per_layer
    )
    if _is_engine(convention):
        flops += 2.0 * model.patches * model.patch_values * model.vision.width
    return model.tiles * flops


def projector_flops(model: ModelSpec, tokens: int) -> float:
    """The projector's matrix products for ``tokens`` visual tokens."""
    widths = model.projector
    return 2.0 * tokens * sum(a * b for a, b in pairwise(widths))


def text_tower_flops(model: ModelSpec, windows: int = 1) -> float:
    """The CLIP text tower on ``windows`` padded contexts (77 tokens each).

    One window holds a question; longer ones are split and averaged.
    """
    if model.text is None:
        raise ConfigError(f"{model.name} has no text tower; choose a method without relevance")
    context = model.text_context
    return windows * model.text.layers * layer_flops(model.text, context, context, causal=False)


def prefill_flops(
    model: ModelSpec, llm_tokens: Sequence[int], text_tokens: int, convention: str = "papers"
) -> float:
    """The prompt through the LLM and its head.

    Args:
        llm_tokens: visual tokens that enter each layer.
        text_tokens: all other tokens of the prompt.
    Raises:
        ConfigError: not one entry a layer.
    """
    _require_layers(model, llm_tokens)
    engine = _is_engine(convention)
    lengths = [visual + text_tokens for visual in llm_tokens]
    layers = sum(layer_flops(model.llm, n, n, causal=engine) for n in lengths)
    head_positions = 1 if engine else lengths[-1]
    return layers + 2.0 * head_positions * model.llm.width * model.vocab


def decode_flops(
    model: ModelSpec, llm_tokens: Sequence[int], text_tokens: int, new_tokens: int
) -> float:
    """All decode steps: ``new_tokens`` - 1, as prefill gives the first token.

    A step projects one token and attends to the cache; both conventions agree on it.
    """
    _require_layers(model, llm_tokens)
    spec = model.llm
    per_token = layer_flops(spec, 1, 1, causal=False) - 4.0 * spec.heads * spec.head_width
    flops = 0.0
    for step in range(new_tokens - 1):
        context = sum(visual + text_tokens + step + 1 for visual in llm_tokens)
        flops += spec.layers * per_token + 4.0 * context * spec.heads * spec.head_width
        flops += 2.0 * spec.width * model.vocab
    return flops


def kv_cache_bytes(
    model: ModelSpec,
    llm_tokens: Sequence[int],
    text_tokens: int,
    new_tokens: int = 0,
    bytes_per_value: int = 2,
) -> int:
    """Keys and values of all layers; a layer behind a cut holds fewer visual tokens."""
    _require_layers(model, llm_tokens)
    cached = max(new_tokens - 1, 0)  # the last token is never fed back
    entries = sum(visual + text_tokens + cached for visual in llm_tokens)
    return 2 * entries * model.llm.kv_heads * model.llm.head_width * bytes_per_value


def _is_engine(convention: str) -> bool:
    if convention not in CONVENTIONS:
        raise ConfigError(f"convention is {convention!r}; choose one of {', '.join(CONVENTIONS)}")
    return convention == "engine"


def _require_layers(model: ModelSpec, llm_tokens: Sequence[int]) -> None:
    if len(llm_tokens) != model.llm.layers:
        raise ConfigError(
            f"llm_tokens has {len(llm_tokens)} entries; {model.name} has {model.llm.layers} layers"
        )
