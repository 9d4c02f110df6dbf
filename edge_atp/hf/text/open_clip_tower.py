"""Text towers from open_clip, for vision encoders that ``transformers`` ships without one.

BLIP-2's ViT is EVA-CLIP's; its text side is open_clip's ``EVA01-g-14``.
"""

from __future__ import annotations

from typing import Any

import torch

from edge_atp.hf.family import Module, Tensor, VisionTower
from edge_atp.hf.text.open_clip_weights import load_open_clip
from edge_atp.hf.text.tower import TextEncoding, TextTower, windows


class OpenClipTower(TextTower):
    """A loaded open_clip model and its tokenizer."""

    def __init__(self, model: Module, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._text: Any = getattr(model, "text", model)

    @classmethod
    def from_name(cls, name: str, device: Any = "cpu") -> OpenClipTower:
        """Load "<model>/<pretrained tag or file>"; raises as ``load_open_clip`` does."""
        model = load_open_clip(name).to(device)
        from open_clip import get_tokenizer

        return cls(model, get_tokenizer(name.partition("/")[0]))

    def encode(self, text: str) -> TextEncoding:
        """Windows of the context length, averaged."""
        words = self._words(text)
        size = int(self._tokenizer.context_length) - 2
        ids = [token for token, _, _ in words]
        with torch.no_grad():
            parts = [self._window(window) for window in windows(ids, size)]
        embed = torch.stack([embed for embed, _ in parts]).mean(0)
        tokens = torch.cat([tokens for _, tokens in parts])
        return TextEncoding(embed, tokens, [(start, end) for _, start, end in words])

    def _words(self, text: str) -> list[tuple[int, int, int]]:
        """(token id, start, end) of each token; open_clip's tokenizer reports no offsets.

        Tokens decode to lower-cased pieces of the text in order, so each is found by searching on
        from the end of the one before it; a piece that was rewritten takes an empty span there.
        """
        lowered, cursor, result = text.lower(), 0, []
        for token in self._tokenizer.encode(text):
            piece = self._tokenizer.decode([token]).strip()
            found = lowered.find(piece, cursor) if piece else -1
            start, end = (found, found + len(piece)) if found >= 0 else (cursor, cursor)
            cursor = end
            result.append((token, start, end))
        return result

    def _window(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        tokenizer = self._tokenizer
        full = [tokenizer.sot_token_id, *ids, tokenizer.eot_token_id]
        padded = full + [0] * (int(tokenizer.context_length) - len(full))
        device = next(self._model.parameters()).device
        batch = torch.tensor([padded], device=device)
        captured: list[Tensor] = []
        # The projected embedding is public; per-token states only pass through the final norm.
        norm = self._text.ln_final
        hook = norm.register_forward_hook(lambda _m, _a, output: captured.append(output))
        try:
            embed = self._model.encode_text(batch)[0]
        finally:
            hook.remove()
        states = captured[-1][0, 1 : 1 + len(ids)]
        return embed, self._project_text(states)

    def _project_text(self, states: Tensor) -> Tensor:
        projection = self._text.text_projection
        if projection is None:
            return states
        return projection(states) if callable(projection) else states @ projection

    def project_patches(self, patches: Tensor, vision: VisionTower) -> Tensor:
        """Through EVA's final norm and head, or CLIP's ``ln_post`` and ``proj``."""
        visual = self._model.visual
        # A tower that the caller loaded may be elsewhere, and in another precision.
        states = patches.to(next(visual.parameters()))
        if hasattr(visual, "trunk"):
            trunk = visual.trunk
            joint = visual.head(trunk.head(trunk.fc_norm(trunk.norm(states))))
        else:
            joint = visual.ln_post(states) @ visual.proj
        return joint.to(patches.device)
