"""What the engine returns, as frozen dataclasses. N patches, D features, P joint space, H LLM."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

# Vision outputs that few methods read; fetched for those alone.
OPTIONAL_VISION_OUTPUTS = ("patch_keys", "last_cls_attention", "last_patch_keys")


@dataclass(frozen=True)
class VisionOutput:
    """One encoded image.

    patch_features: (N, D) what the projector consumes.
    cls_attention: (N,) head-mean attention of the CLS token to each patch, consumed layer.
    patch_embeds: (N, P) patches in the joint image-text space.
    patch_keys: (N, D) attention keys of the consumed layer, heads concatenated; None where they
        were not asked for or the graph does not put them out. So too the next two.
    last_cls_attention: (N,) as ``cls_attention``, of the encoder's last layer.
    last_patch_keys: (N, D) as ``patch_keys``, of the encoder's last layer.
    place: (N,) int64 ascending, the patch of the whole grid that each row stands at, where the
        encoder dropped the others on its way; None where it dropped none.
    """

    patch_features: Float
    cls_attention: Float
    patch_embeds: Float
    patch_keys: Float | None = None
    last_cls_attention: Float | None = None
    last_patch_keys: Float | None = None
    place: NDArray[np.int64] | None = None

    def has(self, names: Iterable[str]) -> bool:
        """Whether all outputs of those names are there."""
        return all(getattr(self, name) is not None for name in names)


@dataclass(frozen=True)
class EncoderCut:
    """A method's stage in the vision encoder, as its stage in the language model needs it.

    num_patches: of one image before the encoder cut any.
    num_images: in the prompt.
    side_row: (H,) the row that the language model's stage scores from.
    """

    num_patches: int
    num_images: int
    side_row: Float


@dataclass(frozen=True)
class Prompt:
    """The language model's input.

    inputs_embeds: (S, H), text and visual tokens in order; S = num_text + num_visual.
    is_visual: (S,) bool, which of them are visual; None where nobody asked.
    num_prefix: leading rows that every prompt of the model begins with and that may be kept.
    position_ids: (S,) int64 ascending, with gaps where patches are missing; None for 0 to S - 1.
    encoder_cut: what an encoder that cut patches leaves to the language model's cuts.
    """

    inputs_embeds: Float
    num_text_tokens: int
    num_visual_tokens: int
    is_visual: NDArray[np.bool_] | None = None
    num_prefix: int = 0
    position_ids: NDArray[np.int64] | None = None
    encoder_cut: EncoderCut | None = None

    @property
    def next_position(self) -> int:
        """Position of the first token behind the prompt."""
        if self.position_ids is None:
            return len(self.inputs_embeds)
        return int(self.position_ids[-1]) + 1


@dataclass(frozen=True)
class Generation:
    """A generated answer.

    token_ids: without the end-of-sequence token.
    text: decoded, special tokens removed, stripped.
    mean_token_prob: mean probability of ``token_ids`` under the model; of the end-of-sequence
        token where nothing else was generated.
    finish: "eos", "length" (max_new_tokens or the KV cache's end) or "stopped" (by the caller).
    """

    token_ids: tuple[int, ...]
    text: str
    mean_token_prob: float
    finish: str
