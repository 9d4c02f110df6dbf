"""Training forward pass of the language model: many questions behind one image.

A row is ``prefix | visual tokens | question 1 + answer 1 | question 2 + answer 2 | ...``. A block
mask hides the questions from each other and every question's positions restart after the image,
so each question sees exactly what it would see alone; a test compares with the plain model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from models.warehouse_tiny.model import WarehouseModel


@dataclass(frozen=True)
class PackedRows:
    """B rows of S positions after the visual tokens were put in.

    Attributes:
        inputs_embeds: (B, S, D).
        position_ids: (B, S).
        segment: (B, S) 0 for prefix and image, 1.. for questions, -1 for padding.
        visual: (start, stop) of the visual tokens, equal in all rows.
        read_positions: (B, R) positions whose next token is trained, padded with 0.
    """

    inputs_embeds: Tensor
    position_ids: Tensor
    segment: Tensor
    visual: tuple[int, int]
    read_positions: Tensor


def block_mask(segment: Tensor) -> Tensor:
    """(B, 1, S, S) bool, True where a query may look: causal, own segment or the image prefix."""
    size = segment.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool, device=segment.device).tril()
    own = segment[:, :, None] == segment[:, None, :]
    prefix = (segment == 0)[:, None, :]
    return (causal & (own | prefix))[:, None]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos + turned * sin


def _rope(config: object, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, (B, 1, S, head_dim)."""
    dim = config.hidden_size // config.num_attention_heads  # type: ignore[attr-defined]
    steps = torch.arange(0, dim, 2, device=position_ids.device).float() / dim
    angle = position_ids[..., None].float() * 10000.0**-steps
    angle = torch.cat([angle, angle], dim=-1)[:, None]
    return angle.cos(), angle.sin()


def _layer(
    layer: nn.Module,
    x: Tensor,
    mask: Tensor,
    rope: tuple[Tensor, Tensor],
    read: tuple[Tensor, tuple[int, int], int] | None,
) -> tuple[Tensor, Tensor | None]:
    """One Llama block; optionally log attention of the first heads from the read positions.

    ``read`` is (read_positions, visual span, number of heads); the result is (B, heads, R, K),
    normalised over the K visual tokens.
    """
    attention = layer.self_attn
    heads = attention.config.num_attention_heads
    h = layer.input_layernorm(x)
    q = attention.q_proj(h).unflatten(-1, (heads, -1)).transpose(1, 2)
    k = attention.k_proj(h).unflatten(-1, (heads, -1)).transpose(1, 2)
    value = attention.v_proj(h).unflatten(-1, (heads, -1)).transpose(1, 2)
    cos, sin = rope[0].to(q.dtype), rope[1].to(q.dtype)
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    mixed = nnf.scaled_dot_product_attention(q, k, value, attn_mask=mask)
    looked = None
    if read is not None:
        positions, (start, stop), count = read
        index = positions[:, None, :, None].expand(-1, count, -1, q.shape[-1])
        rows = q[:, :count].gather(2, index).float()
        logits = rows @ k[:, :count, start:stop].float().transpose(-1, -2)
        looked = (logits * q.shape[-1] ** -0.5).log_softmax(-1)
    x = x + attention.o_proj(mixed.transpose(1, 2).flatten(2))
    return x + layer.mlp(layer.post_attention_layernorm(x)), looked


def run_packed(
    model: WarehouseModel,
    rows: PackedRows,
    guided_layers: tuple[int, ...] = (),
    guided_heads: int = 2,
) -> tuple[Tensor, list[Tensor]]:
    """Run the packed rows.

    Returns:
        logits (B, R, vocabulary) at the read positions, and for every guided layer the log
        attention (B, guided_heads, R, K) of its first heads over the visual tokens.
    """
    llm = model.llm
    mask = block_mask(rows.segment)
    rope = _rope(llm.config, rows.position_ids)
    x = rows.inputs_embeds
    looked = []
    for index, layer in enumerate(llm.layers):
        guided = index in guided_layers
        read = (rows.read_positions, rows.visual, guided_heads) if guided else None
        x, seen = _layer(layer, x, mask, rope, read)
        if seen is not None:
            looked.append(seen)
    picked = x.gather(1, rows.read_positions[..., None].expand(-1, -1, x.shape[-1]))
    return nnf.linear(llm.norm(picked), llm.embed_tokens.weight).float(), looked
