"""The original model in torch, float32: what the exported graphs are compared with.

Uses transformers' own forward passes, eager attention, and its ``generate``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from export.text_tower import TextTower

Float = NDArray[np.float32]


@dataclass(frozen=True)
class ReferenceVision:
    """patch_features (N, D), cls_attention (N,), patch_embeds (N, P) or None.

    patch_keys (N, D) are the keys of the layer that ``cls_attention`` is of, heads concatenated;
    last_cls_attention and last_patch_keys are those of the encoder's last layer.
    """

    patch_features: Float
    cls_attention: Float
    patch_embeds: Float | None
    patch_keys: Float
    last_cls_attention: Float
    last_patch_keys: Float


class Reference:
    """A LLaVA checkpoint and its text tower as transformers runs them."""

    def __init__(
        self,
        checkpoint: Path,
        tower: TextTower | None,
        embed_layer: int = -1,
        value_path: bool = False,
    ) -> None:
        """``value_path``: joint patches from the last layer's values, not ``embed_layer``."""
        self._model = transformers.LlavaForConditionalGeneration.from_pretrained(
            str(checkpoint), dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self._tower = tower
        self._text = tower.load_reference() if tower else None
        self._embed_layer = embed_layer
        self._value_path = value_path

    @property
    def config(self) -> Any:
        """The checkpoint's configuration object."""
        return self._model.config

    @property
    def vision_tower(self) -> Any:
        """The vision encoder, with its ``embeddings``, ``pre_layrnorm`` and ``encoder.layers``."""
        tower = self._model.model.vision_tower
        return getattr(tower, "vision_model", tower)

    @property
    def consumed_layers(self) -> int:
        """Layers that the projector's input has been through."""
        layer: int = self._model.config.vision_feature_layer
        return layer if layer >= 0 else len(self.vision_tower.encoder.layers) + 1 + layer

    def encode_image(self, pixel_values: Float) -> ReferenceVision:
        """Features of the consumed layer, CLS row of the layer that made them, joint patches."""
        with torch.inference_mode():
            output = self._model.model.vision_tower(
                torch.from_numpy(pixel_values), output_hidden_states=True, output_attentions=True
            )
            layer = self._model.config.vision_feature_layer
            # Hidden state 0 is the embedding, so state i comes from attention i - 1.
            scored = layer if layer < 0 else layer - 1
            return ReferenceVision(
                output.hidden_states[layer][0, 1:].numpy(),
                _cls_row(output, scored),
                self._patch_embeds(output),
                self._keys(output, scored),
                _cls_row(output, -1),
                self._keys(output, -1),
            )

    def _patch_embeds(self, output: Any) -> Float | None:
        """Patches (N, P) in the joint space, of the vision encoder's output; None without it."""
        if self._tower is None:
            return None
        if self._value_path:
            block = self.vision_tower.encoder.layers[-1]
            values = block.self_attn.v_proj(block.layer_norm1(output.hidden_states[-2]))
            states = block.self_attn.out_proj(values)
        else:
            states = output.hidden_states[self._embed_layer]
        return self._joint(states[0, 1:])

    def _joint(self, states: torch.Tensor) -> Float:
        """(S, D) states behind a layer of the vision encoder in the joint space, (S, P)."""
        assert self._tower is not None
        weight = torch.from_numpy(self._tower.visual_projection.astype(np.float32))
        embeds: Float = (self.vision_tower.post_layernorm(states) @ weight.T).numpy()
        return embeds

    def _keys(self, output: Any, index: int) -> Float:
        """Keys (N, D) of the patches in layer ``index``, heads concatenated."""
        block = self.vision_tower.encoder.layers[index]
        entering = output.hidden_states[index - 1 if index < 0 else index]
        projected: Float = block.self_attn.k_proj(block.layer_norm1(entering))[0, 1:].numpy()
        return projected

    def cls_embed(self, pixel_values: Float) -> Float:
        """The CLS token behind the last layer, in the joint space: (P,)."""
        with torch.inference_mode():
            vision = self._model.model.vision_tower
            last = vision(torch.from_numpy(pixel_values)).last_hidden_state[:, 0]
            embed: Float = self._joint(last)[0]
        return embed

    def encode_text(self, input_ids: NDArray[np.int64]) -> Float:
        """Joint-space embedding (P,) of token ids (1, T)."""
        assert self._text is not None
        with torch.inference_mode():
            embed: Float = self._text(torch.from_numpy(input_ids))[0].numpy()
        return embed

    def project(self, patch_features: Float) -> Float:
        """The projector on (K, D) features."""
        features = torch.from_numpy(np.ascontiguousarray(patch_features))
        with torch.inference_mode():
            projected: Float = self._model.model.multi_modal_projector(features).numpy()
        return projected

    def embed_tokens(self, token_ids: NDArray[np.int64]) -> Float:
        """Input embeddings (M, H)."""
        with torch.inference_mode():
            rows: Float = self._model.get_input_embeddings()(torch.from_numpy(token_ids)).numpy()
        return rows

    def last_logits(self, inputs_embeds: Float) -> Float:
        """Logits (vocab,) after the prompt (S, H)."""
        with torch.inference_mode():
            output = self._model(inputs_embeds=torch.from_numpy(inputs_embeds)[None])
            logits: Float = output.logits[0, -1].numpy()
        return logits

    def generate(self, max_new_tokens: int, **inputs: Any) -> tuple[int, ...]:
        """Greedy tokens of ``generate`` given input_ids and pixel_values, or inputs_embeds."""
        tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in inputs.items()}
        first = tensors.get("input_ids", tensors.get("inputs_embeds"))
        assert first is not None
        with torch.inference_mode():
            output = self._model.generate(
                **tensors,
                attention_mask=torch.ones(first.shape[:2], dtype=torch.long),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=0,
            )
        prompt = tensors["input_ids"].shape[1] if "input_ids" in tensors else 0
        return tuple(int(token) for token in output[0, prompt:])


def _cls_row(output: Any, index: int) -> Float:
    """Head-mean attention (N,) of the CLS token to each patch in layer ``index``."""
    row: Float = output.attentions[index][0, :, 0, 1:].mean(dim=0).numpy()
    return row
