"""Training forward passes of the two CLIP towers, on the unmodified ``transformers`` modules.

Beside what ``transformers`` returns, the vision pass takes a subset of the patches (dropped ones
cost nothing) and exposes the CLS attention of the consumed layer. A test holds it to the plain
model's hidden states.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from models.warehouse_tiny.model import WarehouseModel
from models.warehouse_tiny.preprocess import IMAGE_MEAN, IMAGE_STD
from models.warehouse_tiny.vocabulary import GRID, PATCH_SIZE


@dataclass(frozen=True)
class ImageFeatures:
    """What the vision tower gives for n patches.

    Attributes:
        patch_features: (B, n, Dv) hidden states of the consumed layer, CLS removed.
        patch_embeds: (B, n, P) unit vectors in the joint space.
        image_embeds: (B, P) unit vector of CLS.
        cls_log_attention: (B, n) log of the head-mean CLS attention of the consumed layer,
            renormalised over the n patches.
    """

    patch_features: Tensor
    patch_embeds: Tensor
    image_embeds: Tensor
    cls_log_attention: Tensor


def normalise(images: Tensor) -> Tensor:
    """(B, 224, 224, 3) uint8 -> (B, 3, 224, 224) float32 with CLIP statistics."""
    mean = torch.tensor(IMAGE_MEAN, device=images.device)
    std = torch.tensor(IMAGE_STD, device=images.device)
    return ((images.float() / 255.0 - mean) / std).permute(0, 3, 1, 2)


def _patch_tokens(vision: nn.Module, pixels: Tensor, keep: Tensor | None) -> Tensor:
    """(B, 1 + n, Dv) embedded CLS and patches; ``keep`` (B, n) selects patches before any work."""
    batch = pixels.shape[0]
    tiles = pixels.reshape(batch, 3, GRID, PATCH_SIZE, GRID, PATCH_SIZE)
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).reshape(batch, GRID * GRID, -1)
    embeddings = vision.embeddings
    positions = embeddings.position_embedding.weight
    patch_positions = positions[1:].expand(batch, -1, -1)
    if keep is not None:
        tiles = tiles.gather(1, keep[..., None].expand(-1, -1, tiles.shape[-1]))
        patch_positions = patch_positions.gather(
            1, keep[..., None].expand(-1, -1, positions.shape[1])
        )
    weight = embeddings.patch_embedding.weight
    patches = nnf.linear(tiles, weight.reshape(weight.shape[0], -1)) + patch_positions
    cls = (embeddings.class_embedding + positions[0]).expand(batch, 1, -1)
    return vision.pre_layrnorm(torch.cat([cls, patches.float()], dim=1))


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, value: Tensor) -> Tensor:
    """Plain softmax attention in the inputs' own type.

    At 113 to 257 tokens on a CPU, forward and backward take a third of the fused kernel's time
    (one thread, bf16: 6 against 20 ms a layer at 113 tokens and batch 16).
    """
    with torch.autocast(q.device.type, enabled=False):
        weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return weights.softmax(-1) @ value


def _vision_layer(layer: nn.Module, x: Tensor, want_cls: bool) -> tuple[Tensor, Tensor | None]:
    """One pre-norm block; optionally the head-mean CLS attention over patches, (B, n)."""
    attention = layer.self_attn
    heads = attention.num_heads
    h = layer.layer_norm1(x)
    q = _heads(attention.q_proj(h), heads)
    k = _heads(attention.k_proj(h), heads)
    value = _heads(attention.v_proj(h), heads)
    mixed = _attend(q, k, value)
    cls_attention = None
    if want_cls:
        logits = (q[:, :, :1].float() @ k.float().transpose(-1, -2)) * q.shape[-1] ** -0.5
        cls_attention = logits.softmax(-1)[:, :, 0, 1:].mean(1)
    x = x + attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return x + layer.mlp(layer.layer_norm2(x)), cls_attention


def encode_image(
    model: WarehouseModel, pixels: Tensor, keep: Tensor | None = None
) -> ImageFeatures:
    """Run the vision tower.

    Args:
        pixels: (B, 3, 224, 224) normalised.
        keep: (B, n) patch indices to process; None takes all 256.
    """
    vision = model.vision
    x = _patch_tokens(vision, pixels, keep)
    layers = vision.encoder.layers
    consumed = len(layers) + model.config.vision_feature_layer
    features = log_attention = None
    for index, layer in enumerate(layers):
        x, cls_attention = _vision_layer(layer, x, want_cls=index == consumed)
        if cls_attention is not None:
            features = x[:, 1:]
            share = cls_attention / cls_attention.sum(-1, keepdim=True)
            log_attention = share.clamp_min(1e-9).log()
    assert features is not None  # consumed is one of the layers
    assert log_attention is not None
    joint = model.visual_projection(vision.post_layernorm(x)).float()
    joint = nnf.normalize(joint, dim=-1)
    return ImageFeatures(features, joint[:, 1:], joint[:, 0], log_attention)


def encode_text(model: WarehouseModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(T, L) token ids with an end token -> (T, P) unit vectors in the joint space."""
    embeds = model.text_tower(input_ids=input_ids, attention_mask=attention_mask).text_embeds
    return nnf.normalize(embeds.float(), dim=-1)
