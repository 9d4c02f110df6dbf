"""The values that travel through the pipeline, as frozen dataclasses with documented shapes.

Pure data: no inference, no ROS, no file access. N is the number of patches (visual tokens) of one
image, K the number kept, D the width of the patch features, H the width of the language model, P
the width of CLIP's joint image-text space, M the number of text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

# NumPy array or torch tensor: pruning is written against the Python array API standard.
Array = Any


class Policy(Enum):
    """How many visual tokens a question may keep (values match ``edge_atp_msgs/PruneConfig``)."""

    NODE_DEFAULT = 0
    OFF = 1
    KEEP_RATIO = 2
    TOKEN_BUDGET = 3
    SCORE_MASS = 4
    LATENCY_BUDGET = 5


class Status(Enum):
    """State of an answer (values match ``edge_atp_msgs/Answer``)."""

    PARTIAL = 0
    FINAL = 1
    TRUNCATED = 2
    CANCELED = 3
    EXPIRED = 4
    ERROR = 5


class ConfidenceKind(Enum):
    """What a confidence is the probability of (values match ``edge_atp_msgs/Answer``)."""

    NONE = 0
    MEAN_TOKEN_PROB = 1
    CHOICE_PROB = 2


@dataclass(frozen=True)
class PatchGrid:
    """Rows and columns of the patch grid; patches are numbered row-major."""

    rows: int
    cols: int

    @property
    def num_patches(self) -> int:
        """Number of patches, rows * cols."""
        return self.rows * self.cols


@dataclass(frozen=True)
class SourceRegion:
    """Rectangle of the camera image, in source pixels, that the patch grid covers."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Frame:
    """One camera image.

    image: (height, width, 3) uint8, RGB.
    stamp_ns: capture time, nanoseconds of the publisher's clock.
    frame_id: coordinate frame of the camera (TF name).
    camera: name of the camera as configured.
    """

    image: NDArray[np.uint8]
    stamp_ns: int = 0
    frame_id: str = ""
    camera: str = "camera"


@dataclass(frozen=True)
class PruneSpec:
    """What a question asks of pruning; empty fields take the pipeline's defaults.

    method: name of a pruning method, "" for the default.
    keep_ratio: share of visual tokens kept, (0, 1]; read with Policy.KEEP_RATIO.
    max_visual_tokens: most tokens kept per image; read with Policy.TOKEN_BUDGET.
    score_mass: share of the total score kept, (0, 1]; read with Policy.SCORE_MASS.
    latency_budget_s: seconds to the last token; read with Policy.LATENCY_BUDGET.
    alpha: weight of the question against saliency, [0, 1]; None for the default.
    """

    policy: Policy = Policy.NODE_DEFAULT
    method: str = ""
    keep_ratio: float = 1.0
    max_visual_tokens: int = 0
    score_mass: float = 0.0
    latency_budget_s: float = 0.0
    alpha: float | None = None


@dataclass(frozen=True)
class Query:
    """A question about one or several frames.

    choices: closed answer set; empty for a free answer.
    max_new_tokens: 0 takes the pipeline's default.
    prune: for every image alike, each image with a budget of its own.
    conversation_id: joins questions that follow one another; empty for a question that stands
        alone.
    prune_per_image: one entry per image handed in, in place of ``prune``; they name one method.
    """

    text: str
    query_id: str = ""
    choices: tuple[str, ...] = ()
    max_new_tokens: int = 0
    prune: PruneSpec = field(default_factory=PruneSpec)
    conversation_id: str = ""
    prune_per_image: tuple[PruneSpec, ...] = ()


@dataclass(frozen=True)
class VisualSignals:
    """What a vision encoder exposes about one image; a method names the fields it needs.

    patch_features: (N, D) features the projector consumes.
    image_embeds: (N, H) the same patches after the projector.
    cls_attention: (heads, N) or (N,) attention of the CLS token to each patch.
    received_attention: (heads, N) or (N,) mean attention each patch receives (encoders without
        a CLS token).
    patch_embeds: (N, P) patches in CLIP's joint space (post-layernorm and visual projection).
    text_embed: (P,) the question in CLIP's joint space.
    text_tokens: (M, H) language-model input embeddings of the question's tokens.
    clip_text_tokens: (M', P) per-token text embeddings in CLIP's joint space.
    patch_keys: (N, Dk) attention keys of the patches, heads concatenated or averaged.
    cls_key: (Dk,) attention key of the CLS token.
    cls_feature: (D,) the CLS token beside ``patch_features``.
    patch_grid: geometry of the N patches.
    """

    patch_features: Array | None = None
    image_embeds: Array | None = None
    cls_attention: Array | None = None
    received_attention: Array | None = None
    patch_embeds: Array | None = None
    text_embed: Array | None = None
    text_tokens: Array | None = None
    clip_text_tokens: Array | None = None
    patch_keys: Array | None = None
    cls_key: Array | None = None
    cls_feature: Array | None = None
    patch_grid: PatchGrid | None = None


@dataclass(frozen=True)
class Selection:
    """Which visual tokens stay.

    kept_indices: (K,) int64, ascending, unique.
    scores: (N,) float32 importance (higher is kept first), None for methods without one.
    order: (K,) int64, the kept indices in the order they were chosen.
    merged: (K', D) tokens that replace the kept ones where a method merges, else None.
    """

    kept_indices: Array
    scores: Array | None
    order: Array
    merged: Array | None = None


@dataclass(frozen=True)
class StageTimes:
    """Seconds spent on one answer.

    total = queue_wait + preprocess + vision_encode + prune + prefill + decode; the stages are
    timed back to back, so they add up. ``queue_wait`` includes the opening of graphs that the first
    question of a kind needs; ``prune`` the text embedding, scoring and selection, and a choice
    inside the encoder; ``prefill`` tokenisation and projection of the kept tokens. ``first_token``
    counts from acceptance to the first token; ``frame_age`` is the age of the frame when work on
    it began. The last two are not part of the sum.
    """

    frame_age: float = 0.0
    queue_wait: float = 0.0
    preprocess: float = 0.0
    vision_encode: float = 0.0
    prune: float = 0.0
    prefill: float = 0.0
    first_token: float = 0.0
    decode: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of one answer: visual before and after pruning, text of the prompt, generated."""

    visual_total: int = 0
    visual_kept: int = 0
    prompt_text: int = 0
    generated: int = 0


@dataclass(frozen=True)
class LayerCut:
    """Visual tokens left by one cut inside the model.

    part: "vision" or "language".
    layer: 0-based; the vision layer behind whose attention tokens left, or the language layer
        that fewer tokens entered.
    num_kept: tokens of all images that went on, fused ones included, recycled ones not.
    """

    part: str
    layer: int
    num_kept: int


@dataclass(frozen=True)
class Reuse:
    """What an answer did not compute because it was there already.

    images: images of the prompt whose encoding was there: handed in, unchanged, or of an earlier
        turn.
    text_embed: the question's embedding was remembered.
    kv_tokens: tokens of the prompt whose keys and values were there.
    """

    images: int = 0
    text_embed: bool = False
    kv_tokens: int = 0


@dataclass(frozen=True)
class PatchMask:
    """Which patches of one frame the language model saw.

    kept: (N,) bool, row-major over ``grid``.
    scores: (N,) float32, or None for methods without scores.
    region: source pixels the grid covers.
    """

    frame: Frame
    grid: PatchGrid
    region: SourceRegion
    kept: NDArray[np.bool_]
    scores: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Answer:
    """The answer to one question, with the evidence of how it was reached.

    masks: of the newest images it is about; empty where it ended before selection.
    confidence: mean probability of the generated tokens, or of the chosen answer with a closed
        set, as ``confidence_kind`` says; None when there is none.
    choice_probs: (C,) probability of each of Query.choices, sums to 1; empty without choices.
    method: name of the pruning method used, "none" where every token was kept unasked; of images
        that differ in that, both, in the order of the images, as in "atp,none".
    turn: place of the question in its conversation, from 1; 0 if it stands alone.
    predicted_s: seconds that this device was predicted to take, waiting not counted, before the
        work began; None without a calibration (``edge-atp bench --calibrate``).
    cuts: what each cut inside the model left, in the order they happened; empty for methods that
        cut between vision encoder and language model.
    kv_bytes: memory of the keys and values that the answer held in the end.
    """

    text: str
    query_id: str
    status: Status
    masks: tuple[PatchMask, ...]
    tokens: TokenCounts
    times: StageTimes
    confidence: float | None
    method: str
    model_id: str
    token_ids: tuple[int, ...] = ()
    confidence_kind: ConfidenceKind = ConfidenceKind.NONE
    choice_probs: tuple[float, ...] = ()
    reused: Reuse = Reuse()
    turn: int = 0
    predicted_s: float | None = None
    cuts: tuple[LayerCut, ...] = ()
    kv_bytes: int = 0
