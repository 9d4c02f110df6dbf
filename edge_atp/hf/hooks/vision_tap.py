"""Takes from the vision encoder, while it runs, what pruning methods score by.

Captured tensors live until the selection of the same call is done.
"""

from __future__ import annotations

from typing import Any

import torch

from edge_atp.errors import ConfigError, MissingSignalError
from edge_atp.hf.family import Tensor, VisionTower
from edge_atp.hf.hooks.installation import Installation
from edge_atp.hf.hooks.projections import ProjectionTap, cls_rows, received_rows


class VisionTap:
    """Projections of the scored layer and of the last one, and two layers' outputs."""

    def __init__(self, tower: VisionTower, layer: int | None = None, embed_layer: int = -1) -> None:
        """
        Args:
            layer: 0-based layer whose attention and keys are scored, negative from the end; None
                for the tower's default.
            embed_layer: hidden state that joint-space patches are taken from, -1 for the last; as
                the exporter counts, n >= 1 is what layer n - 1 puts out.
        """
        self.tower = tower
        count = len(tower.layers)
        if layer is not None and not -count <= layer < count:
            raise ConfigError(f"attention_layer is {layer}; the vision encoder has {count} layers")
        if layer is None:
            layer = tower.attention_layer
        scored = tower.feature_layer if layer is None else layer % count
        taps = {
            index: ProjectionTap(getattr(tower.layers[index], tower.attention))
            for index in {scored, count - 1}
        }
        if not (1 <= embed_layer <= count or -count <= embed_layer <= -1):
            raise ConfigError(
                f"embed_layer is {embed_layer}; the vision encoder has {count} layers, so it must"
                f" be in [1, {count}] or [-{count}, -1]"
            )
        self._embed_at = embed_layer - 1 if embed_layer > 0 else count + embed_layer
        self._scored, self._last = taps[scored], taps[count - 1]
        self._taps = tuple(taps.values())
        self._outputs: dict[int, Tensor] = {}

    def install(self, installation: Installation) -> None:
        """Register the capturing hooks."""
        for tap in self._taps:
            tap.install(installation)
        last = len(self.tower.layers) - 1
        for index in {self.tower.feature_layer, self._embed_at, last}:
            installation.after(self.tower.layers[index], self._capture(index))

    def clear(self) -> None:
        """Forget the captured tensors."""
        for tap in self._taps:
            tap.clear()
        self._outputs.clear()

    def cls_attention(self) -> Tensor:
        """(T, heads, n) attention of the CLS token to each patch."""
        return cls_rows(self._scored.heads())

    def received_attention(self) -> Tensor:
        """(T, heads, n) mean attention each patch receives from all tokens.

        Packed encoders give (1, heads, n), normalised within each of their sequences.
        """
        heads, bounds = self._scored.heads(), self._scored.bounds
        if bounds is None:
            pairs = zip(heads.queries, heads.keys, strict=True)
            rows = torch.stack([received_rows(queries, keys) for queries, keys in pairs])
            return rows[..., 1:] if self.tower.has_cls else rows
        parts = [
            received_rows(heads.queries[:, start:stop], heads.keys[:, start:stop])
            for start, stop in bounds
        ]
        return torch.cat(parts, dim=-1)[None]

    def keys(self) -> tuple[Tensor, Tensor | None]:
        """Attention keys of the patches (T, n, heads, d) and of CLS (T, heads, d) or None."""
        keys = self._scored.heads().keys
        keys = (keys if keys.ndim == 4 else keys[None]).transpose(1, 2)
        if self.tower.has_cls:
            return keys[:, 1:], keys[:, 0]
        return keys, None

    def cls_feature(self) -> Tensor | None:
        """(T, D) CLS token after the consumed layer, None without one."""
        if not self.tower.has_cls:
            return None
        return self._output(self.tower.feature_layer)[:, 0]

    def last_cls(self) -> Tensor:
        """(T, D) CLS token after the encoder's last layer."""
        return self._output(len(self.tower.layers) - 1)[:, 0]

    def joint_patches(self) -> Tensor:
        """(T, n, D) patches of ``embed_layer``, before the projection into the joint space."""
        states = self._output(self._embed_at)
        return states[:, 1:] if self.tower.has_cls else states

    def value_patches(self) -> Tensor:
        """(T, n, D) value path of the last layer: out(v(LN1(x))), no attention, no residual.

        Source: MaskCLIP (Zhou et al., 2022), sec. 3.2.
        """
        values = self._last.heads().values
        values = (values if values.ndim == 4 else values[None]).transpose(1, 2).flatten(2)
        attention = getattr(self.tower.layers[-1], self.tower.attention)
        names = ("out_proj", "projection", "proj")
        project = next(getattr(attention, name) for name in names if hasattr(attention, name))
        patches = project(values)
        return patches[:, 1:] if self.tower.has_cls else patches

    def _output(self, index: int) -> Tensor:
        if index not in self._outputs:
            raise MissingSignalError(f"layer {index} of the vision encoder did not run")
        states = self._outputs[index]
        return states if states.ndim == 3 else states[None]

    def _capture(self, index: int) -> Any:
        def hook(_module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
            self._outputs[index] = output[0] if isinstance(output, tuple) else output

        return hook
