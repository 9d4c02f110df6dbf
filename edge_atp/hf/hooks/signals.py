"""Encoder outputs of one vision call as ``VisualSignals``, a group of visual tokens at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from edge_atp.errors import MissingSignalError
from edge_atp.hf.family import Family, Host, Tensor, TokenGroup, VisionCall
from edge_atp.hf.hooks.vision_tap import VisionTap
from edge_atp.hf.text.tower import TextTower
from edge_atp.types import VisualSignals


@dataclass(frozen=True)
class QuestionSignals:
    """The question as embeddings.

    text_embed: (P,) in CLIP's joint space, None without a text tower.
    clip_text_tokens: (M', P) per token, None without a text tower.
    text_tokens: (M, H) language-model input embeddings.
    """

    text_embed: Tensor | None = None
    clip_text_tokens: Tensor | None = None
    text_tokens: Tensor | None = None


@dataclass(frozen=True)
class CallSignals:
    """Signals of all F projector tokens of a call; fields as in ``VisualSignals``.

    cls_key, cls_feature: (T, Dk) and (T, D), one per tile; a group over several takes the mean.
    tokens: visual tokens per tile.
    """

    patch_features: Tensor
    tokens: int
    image_embeds: Tensor | None = None
    cls_attention: Tensor | None = None
    received_attention: Tensor | None = None
    patch_embeds: Tensor | None = None
    patch_keys: Tensor | None = None
    cls_key: Tensor | None = None
    cls_feature: Tensor | None = None

    def of(self, group: TokenGroup, question: QuestionSignals) -> VisualSignals:
        """Signals of one group of tokens."""
        index = group.tokens.to(self.patch_features.device)

        def rows(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[index]

        def columns(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[:, index]

        tiles = torch.unique(index // self.tokens)

        def here(values: Tensor | None) -> Tensor | None:
            # The text tower and the language model may live on other devices.
            return None if values is None else values.to(index.device)

        def of_tiles(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[tiles].mean(0)

        return VisualSignals(
            patch_features=rows(self.patch_features),
            image_embeds=rows(self.image_embeds),
            cls_attention=columns(self.cls_attention),
            received_attention=columns(self.received_attention),
            patch_embeds=rows(self.patch_embeds),
            text_embed=here(question.text_embed),
            text_tokens=here(question.text_tokens),
            clip_text_tokens=here(question.clip_text_tokens),
            patch_keys=rows(self.patch_keys),
            cls_key=of_tiles(self.cls_key),
            cls_feature=of_tiles(self.cls_feature),
            patch_grid=group.grid,
        )


@dataclass(frozen=True)
class SignalSource:
    """Computes what one pruning method needs of a vision call.

    needs: ``VisualSignals`` fields to compute besides the features.
    relevance_source: "value" takes joint-space patches from the value path.
    mean_keys: average the attention keys over heads instead of concatenating them.
    """

    family: Family
    host: Host
    tap: VisionTap
    text_tower: TextTower | None
    needs: frozenset[str]
    relevance_source: str = "raw"
    mean_keys: bool = False

    def collect(self, call: VisionCall, features: Tensor, embeds: Tensor | None) -> CallSignals:
        """Signals of a call.

        Args:
            features: (T, n, D) projector tokens before projection.
            embeds: (T, n, H) after projection, None before it ran.
        """
        fields: dict[str, Any] = {}
        if "cls_attention" in self.needs and self.host.vision.has_cls:
            fields["cls_attention"] = self._flat_heads(call, self.tap.cls_attention())
        elif "received_attention" in self.needs:
            fields["received_attention"] = self._flat_heads(call, self.tap.received_attention())
        if "patch_keys" in self.needs:
            fields |= self._keys(call)
        if "patch_embeds" in self.needs:
            fields["patch_embeds"] = self._joint_patches(call, embeds)
        if embeds is not None:
            fields["image_embeds"] = embeds.flatten(0, 1)
        # Merging methods merge what stands at the prune site.
        site = features if embeds is None else embeds
        return CallSignals(
            patch_features=site.flatten(0, 1),
            tokens=features.shape[1],
            cls_feature=self.tap.cls_feature() if embeds is None else None,
            **fields,
        )

    def _flat_heads(self, call: VisionCall, rows: Tensor) -> Tensor:
        """(T, heads, patches) -> (heads, F)."""
        return self.family.pool(self.host, call, rows.transpose(0, 1)).flatten(1)

    def _flat_rows(self, call: VisionCall, patches: Tensor) -> Tensor:
        """(T, patches, D) -> (F, D)."""
        pooled = self.family.pool(self.host, call, patches.movedim(-1, 0))
        return pooled.flatten(1).transpose(0, 1)

    def _keys(self, call: VisionCall) -> dict[str, Tensor | None]:
        patches, cls = self.tap.keys()
        patches = patches.mean(2) if self.mean_keys else patches.flatten(2)
        if cls is not None:
            cls = cls.mean(1) if self.mean_keys else cls.flatten(1)
        return {"patch_keys": self._flat_rows(call, patches), "cls_key": cls}

    def _joint_patches(self, call: VisionCall, embeds: Tensor | None) -> Tensor | None:
        if self.text_tower is None:
            raise MissingSignalError("patch_embeds needs a text tower: attach with text_tower=...")
        if self.text_tower.in_language_model:
            return None if embeds is None else embeds.flatten(0, 1)
        value = self.relevance_source == "value"
        patches = self.tap.value_patches() if value else self.tap.joint_patches()
        joint = self.text_tower.project_patches(patches, self.host.vision)
        return self._flat_rows(call, joint)
