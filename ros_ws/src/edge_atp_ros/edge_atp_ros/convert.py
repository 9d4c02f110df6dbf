"""Messages <-> the core's types. Pure functions: no node, no clock, no state.

Images are in ``images``, errors in ``error_codes``.
"""

from __future__ import annotations

import array
import math
from collections.abc import Sequence

from builtin_interfaces.msg import Duration, Time
from edge_atp_msgs import msg as msgs
from sensor_msgs.msg import RegionOfInterest
from std_msgs.msg import Header

from edge_atp import types
from edge_atp.errors import InvalidQueryError
from edge_atp.mask import pack_bits

_NS = 1_000_000_000


def to_query(message: msgs.Query) -> types.Query:
    """The question as the pipeline takes it.

    Raises:
        InvalidQueryError: an unknown pruning policy.
    """
    return types.Query(
        text=message.text,
        query_id=message.query_id,
        choices=tuple(message.choices),
        max_new_tokens=message.max_new_tokens,
        prune=to_prune_spec(message.prune),
        conversation_id=message.conversation_id,
    )


def to_prune_spec(message: msgs.PruneConfig) -> types.PruneSpec:
    """What the question asks of pruning; ranges are checked by the pipeline.

    Raises:
        InvalidQueryError: an unknown policy, or alpha is NaN.
    """
    try:
        policy = types.Policy(message.policy)
    except ValueError:
        known = ", ".join(f"{policy.value} ({policy.name})" for policy in types.Policy)
        raise InvalidQueryError(
            f"prune.policy is {message.policy}; it must be one of {known}"
        ) from None
    if math.isnan(message.alpha):
        raise InvalidQueryError("prune.alpha is nan; it must be in [0, 1], or negative")
    return types.PruneSpec(
        policy=policy,
        method=message.method,
        keep_ratio=message.keep_ratio,
        max_visual_tokens=message.max_visual_tokens,
        score_mass=message.score_mass,
        latency_budget_s=to_seconds(message.latency_budget),
        alpha=None if message.alpha < 0 else message.alpha,
    )


def to_answer(
    answer: types.Answer,
    headers: Sequence[Header],
    cameras: Sequence[str],
    sequence: int,
    frames_dropped: int,
) -> msgs.Answer:
    """The answer message.

    Args:
        answer: what the pipeline returned.
        headers: headers of the images, in the order the model saw them.
        cameras: their cameras, in the same order.
        sequence: number of the answer among those to this query_id.
        frames_dropped: see Answer.msg.
    """
    message = msgs.Answer(
        query_id=answer.query_id,
        sequence=sequence,
        status=answer.status.value,
        text=answer.text,
        frames_dropped=frames_dropped,
        model_id=answer.model_id,
        prune_method=answer.method,
        tokens=msgs.TokenCounts(
            visual_total=answer.tokens.visual_total,
            visual_kept=answer.tokens.visual_kept,
            prompt_text=answer.tokens.prompt_text,
            generated=answer.tokens.generated,
        ),
        latency=to_latency(answer.times),
    )
    set_frames(message, headers, cameras)
    if answer.confidence is not None:
        message.confidence_kind = answer.confidence_kind.value
        message.confidence = float(answer.confidence)
    return message


def set_frames(message: msgs.Answer, headers: Sequence[Header], cameras: Sequence[str]) -> None:
    """Fill in which frames an answer is about; its header is the newest one's."""
    if headers:
        message.header = max(headers, key=lambda header: to_ns(header.stamp))
    message.cameras = list(cameras)
    message.frame_stamps = [header.stamp for header in headers]


def to_latency(times: types.StageTimes) -> msgs.LatencyBreakdown:
    """Stage times, seconds; the fields carry the same names on both sides."""
    names = msgs.LatencyBreakdown.get_fields_and_field_types()
    return msgs.LatencyBreakdown(**{name: float(getattr(times, name)) for name in names})


def to_mask_array(
    answer: types.Answer, headers: Sequence[Header], sequence: int, with_scores: bool
) -> msgs.PatchMaskArray:
    """The masks of an answer; query_id and sequence join the two."""
    return msgs.PatchMaskArray(
        header=max(headers, key=lambda header: to_ns(header.stamp)),
        query_id=answer.query_id,
        sequence=sequence,
        masks=[
            to_patch_mask(mask, header, with_scores)
            for mask, header in zip(answer.masks, headers, strict=True)
        ],
    )


def to_patch_mask(mask: types.PatchMask, header: Header, with_scores: bool) -> msgs.PatchMask:
    """One image's mask: packed bits, source region and, if wanted, the scores."""
    height, width = mask.frame.image.shape[:2]
    message = msgs.PatchMask(
        header=header,
        camera=mask.frame.camera,
        image_width=width,
        image_height=height,
        roi=RegionOfInterest(
            x_offset=mask.region.x,
            y_offset=mask.region.y,
            width=mask.region.width,
            height=mask.region.height,
        ),
        stage=msgs.PatchMask.STAGE_POST_ENCODER,
        grid_rows=mask.grid.rows,
        grid_cols=mask.grid.cols,
        kept=array.array("B", pack_bits(mask.kept).tobytes()),
    )
    if with_scores and mask.scores is not None:
        message.scores = array.array("f", mask.scores.astype("float32").tobytes())
    return message


def to_seconds(duration: Duration) -> float:
    """A Duration as seconds."""
    return duration.sec + duration.nanosec / _NS


def to_duration(seconds: float) -> Duration:
    """Seconds, not negative, as a Duration."""
    nanoseconds = round(seconds * _NS)
    return Duration(sec=nanoseconds // _NS, nanosec=nanoseconds % _NS)


def to_ns(stamp: Time) -> int:
    """A Time as nanoseconds."""
    return stamp.sec * _NS + stamp.nanosec


def to_stamp(nanoseconds: int) -> Time:
    """Nanoseconds as a Time."""
    return Time(sec=nanoseconds // _NS, nanosec=nanoseconds % _NS)
