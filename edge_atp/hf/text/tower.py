"""Text encoders whose joint space matches a VLM's vision encoder.

``load_tower`` takes what users have at hand: a loaded CLIP or SigLIP model with its tokenizer, a
Hugging Face name, an open_clip name ("open_clip:EVA01-g-14/laion400m_s11b_b41k"), or "llm" for
the language model's own input space, for encoders that were never trained against text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from edge_atp.errors import ConfigError
from edge_atp.hf.family import Module, Tensor, VisionTower


@dataclass(frozen=True)
class TextEncoding:
    """A text in the joint space.

    embed: (P,) the whole text; longer texts are the mean over windows.
    tokens: (M', P) its tokens without start, end and padding.
    spans: character range [start, end) of each token in the text.
    """

    embed: Tensor
    tokens: Tensor
    spans: list[tuple[int, int]]


class TextTower(ABC):
    """Embeds questions, and brings patches into the same space."""

    in_language_model: bool = False

    @abstractmethod
    def encode(self, text: str) -> TextEncoding:
        """Embed a text of any length; see ``windows`` for texts over the context length."""

    @abstractmethod
    def project_patches(self, patches: Tensor, vision: VisionTower) -> Tensor:
        """(T, n, D) encoder outputs -> (T, n, P) joint space."""


def windows(ids: list[int], size: int) -> list[list[int]]:
    """Split token ids without start and end into windows of at most ``size``.

    CLIP's text tower reads 77 tokens, start and end included. A longer question is cut into
    consecutive windows whose embeddings are averaged, so that its end counts as much as its start.
    """
    return [ids[start : start + size] for start in range(0, len(ids), size)] or [[]]


def post_norm(patches: Tensor, vision: VisionTower) -> Tensor:
    """The vision encoder's final normalisation, where it has one."""
    return patches if vision.post_norm is None else vision.post_norm(patches)


class LanguageModelTower(TextTower):
    """The language model's input space stands in for CLIP's: mean embedding of the question."""

    in_language_model = True

    def __init__(self, embeddings: Module, tokenizer: Any) -> None:
        self._embeddings = embeddings
        self._tokenizer = tokenizer

    def encode(self, text: str) -> TextEncoding:
        """Mean of the tokens' input embeddings."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = torch.tensor(encoded["input_ids"], device=self._embeddings.weight.device)
        tokens = self._embeddings(ids)
        spans = [(int(start), int(end)) for start, end in encoded["offset_mapping"]]
        return TextEncoding(tokens.mean(0), tokens, spans)

    def project_patches(self, patches: Tensor, vision: VisionTower) -> Tensor:
        """Not available: the projector is the way into this space."""
        raise ConfigError("text_tower='llm' compares projected patches, not encoder outputs")


def load_tower(choice: Any, language_embeddings: Module, tokenizer: Any) -> TextTower:
    """Build a text tower.

    Args:
        choice: a TextTower, "llm", "open_clip:<name>/<pretrained>", a Hugging Face name, or a
            pair (model, tokenizer) of a loaded CLIP, SigLIP or open_clip model.
        language_embeddings: the VLM's input embedding, for "llm" and for the device.
        tokenizer: the VLM's tokenizer, for "llm".
    Raises:
        ConfigError: none of these.
        BackendUnavailableError: the package it needs is not installed.
    """
    if isinstance(choice, TextTower):
        return choice
    if choice == "llm":
        return LanguageModelTower(language_embeddings, tokenizer)
    if isinstance(choice, str) and choice.startswith("open_clip:"):
        from edge_atp.hf.text.open_clip_tower import OpenClipTower

        name = choice.removeprefix("open_clip:")
        return OpenClipTower.from_name(name, language_embeddings.weight.device)
    if isinstance(choice, str):
        from edge_atp.hf.text.transformers_tower import TransformersTower

        return TransformersTower.from_name(choice, language_embeddings.weight.device)
    if isinstance(choice, tuple) and len(choice) == 2:
        return _from_pair(*choice)
    raise ConfigError(
        f"text_tower is {choice!r}; give 'llm', a Hugging Face name, 'open_clip:<name>/<tag>', or a"
        " pair (model, tokenizer)"
    )


def _from_pair(model: Any, tokenizer: Any) -> TextTower:
    if hasattr(model, "encode_text"):
        from edge_atp.hf.text.open_clip_tower import OpenClipTower

        return OpenClipTower(model, tokenizer)
    from edge_atp.hf.text.transformers_tower import TransformersTower

    return TransformersTower(model, tokenizer)
