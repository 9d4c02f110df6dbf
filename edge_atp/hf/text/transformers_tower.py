"""CLIP and SigLIP text towers from ``transformers``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edge_atp.errors import ConfigError
from edge_atp.hf.family import Module, Tensor, VisionTower
from edge_atp.hf.text.tower import TextEncoding, TextTower, post_norm, windows

_VISUAL_PROJECTION = "visual_projection.safetensors"


class TransformersTower(TextTower):
    """A loaded ``CLIPModel`` or ``SiglipModel`` with its fast tokenizer.

    A ``CLIPTextModelWithProjection`` embeds text but has no visual projection of its own.
    """

    def __init__(
        self, model: Module, tokenizer: Any, visual_projection: Tensor | None = None
    ) -> None:
        """
        Args:
            visual_projection: (P, D) weight that brings patches into the joint space, where the
                model has none.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(
                "the text tower's tokenizer reports no character offsets; use its fast version"
            )
        self._model = model
        self._tokenizer = tokenizer
        own = getattr(model, "visual_projection", None)
        self._visual_projection = visual_projection if own is None else own.weight
        self._text = model.text_model
        self._size = int(self._text.config.max_position_embeddings)
        self._prefix, self._suffix = _special_ids(tokenizer)

    @classmethod
    def from_name(cls, name: str, device: Any = "cpu") -> TransformersTower:
        """Load a checkpoint by its Hugging Face name or folder.

        The folder of a text model alone may hold the visual projection beside it, as
        ``visual_projection.safetensors``.
        """
        from transformers import (
            AutoConfig,
            AutoModel,
            AutoTokenizer,
            CLIPTextModelWithProjection,
        )

        text_only = AutoConfig.from_pretrained(name).model_type == "clip_text_model"
        kind = CLIPTextModelWithProjection if text_only else AutoModel
        model = kind.from_pretrained(name, dtype=torch.float32).eval().to(device)
        file = Path(name) / _VISUAL_PROJECTION
        return cls(model, AutoTokenizer.from_pretrained(name), _read_projection(file))

    def encode(self, text: str) -> TextEncoding:
        """Windows of the context length, averaged."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = [(int(start), int(end)) for start, end in encoded["offset_mapping"]]
        room = self._size - len(self._prefix) - len(self._suffix)
        with torch.no_grad():
            parts = [self._window(ids) for ids in windows(encoded["input_ids"], room)]
        embed = torch.stack([embed for embed, _ in parts]).mean(0)
        return TextEncoding(embed, torch.cat([tokens for _, tokens in parts]), spans)

    def _window(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        """One window: its pooled embedding (P,) and its tokens' (M', P)."""
        full = [*self._prefix, *ids, *self._suffix]
        start = len(self._prefix)
        if self._reads_padding:
            full = full + [self._tokenizer.pad_token_id] * (self._size - len(full))
        device = next(self._model.parameters()).device
        output = self._text(input_ids=torch.tensor([full], device=device))
        states = output.last_hidden_state[0, start : start + len(ids)]
        pooled = output.pooler_output[0]
        if self._reads_padding:
            return pooled, self._text.head(states)
        return self._model.text_projection(pooled), self._model.text_projection(states)

    @property
    def _reads_padding(self) -> bool:
        """SigLIP pools the last position of the padded text through its own head."""
        return hasattr(self._text, "head")

    def project_patches(self, patches: Tensor, vision: VisionTower) -> Tensor:
        """Final normalisation and visual projection, or SigLIP's pooling head."""
        if self._reads_padding:
            return self._pooling_head(patches, vision)
        weight = self._visual_projection
        if weight is None:
            raise ConfigError(
                f"text tower {type(self._model).__name__} has no visual projection, which patches"
                " need to enter CLIP's joint space; give the full CLIPModel"
            )
        states = post_norm(patches, vision)
        return states.to(weight.dtype) @ weight.to(states.device).T

    def _pooling_head(self, patches: Tensor, vision: VisionTower) -> Tensor:
        """SigLIP: what the attention-pooling head gives for an image of this one patch."""
        head = self._model.vision_model.head
        states = post_norm(patches, vision).to(head.layernorm.weight)
        flat = states.reshape(-1, 1, states.shape[-1])
        return head(flat).view(states.shape).to(patches.device)


def _read_projection(file: Path) -> Tensor | None:
    if not file.is_file():
        return None
    from safetensors.torch import load_file

    return load_file(file)["visual_projection.weight"].float()


def _special_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start], full[start + len(plain) :]
    raise ConfigError("the text tower's tokenizer changes its tokens when it adds special ones")
