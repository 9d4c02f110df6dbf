"""Replies -> the messages the live node publishes, field by field as it fills them.

Two things differ, so that replays of one bag are the same byte by byte: the latencies are zero
unless asked for, and no frame is ever dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_atp.mask import mask_image, overlay, pack_bits
from edge_atp.replay.answering import Reply
from edge_atp.replay.interfaces import ANSWER, COMPRESSED_IMAGE, IMAGE, MASKS, PACKAGE
from edge_atp.replay.recording import RecordedImage
from edge_atp.types import Answer, PatchMask, StageTimes, Status

JPEG_QUALITY = 85
# Pictures in the bag: none, the overlay as JPEG, or as the live node's raw image.
NO_PICTURES, COMPRESSED, RAW = "none", "compressed", "raw"
PICTURES = (COMPRESSED, RAW, NO_PICTURES)


class MessageFactory:
    """Builds messages.

    Args:
        typestore: from ``interfaces.load_typestore``.
        node: name of the node whose topics are used, as "/vlm_node".
        pictures: one of PICTURES.
        timings: fill in the measured latencies.
        scores: fill in the patches' scores.
    """

    def __init__(
        self,
        typestore: Any,
        node: str,
        pictures: str = COMPRESSED,
        timings: bool = False,
        scores: bool = False,
    ) -> None:
        self._types = typestore.types
        self._node = node
        self._pictures = pictures
        self._timings = timings
        self._scores = scores

    @property
    def topics(self) -> dict[str, str]:
        """Message type of each topic that may be written."""
        topics = {self._topic("patch_mask"): MASKS, self._topic("answer"): ANSWER}
        if self._pictures != NO_PICTURES:
            topics[self._topic("mask_image")] = IMAGE
            jpeg = self._pictures == COMPRESSED
            topics[self._overlay_topic] = COMPRESSED_IMAGE if jpeg else IMAGE
        return topics

    def messages(self, reply: Reply, model_id: str) -> Iterator[tuple[str, Any]]:
        """(topic, message) of one reply, in the order in which the live node publishes them."""
        if reply.answer:
            yield self._topic("patch_mask"), self._mask_array(reply, reply.answer)
        yield self._topic("answer"), self._answer(reply, model_id)
        if reply.answer and self._pictures != NO_PICTURES:
            caption = f"{reply.question.query.text}\n{reply.answer.text}"
            for mask, image in zip(reply.answer.masks, reply.images, strict=True):
                header = self._header(image)
                yield self._topic("mask_image"), self._image(mask_image(mask), header)
                yield self._overlay_topic, self._overlay(overlay(mask, caption), header)

    def _topic(self, name: str) -> str:
        return f"{self._node}/{name}"

    @property
    def _overlay_topic(self) -> str:
        # Where image_transport looks for the compressed form of `overlay`.
        suffix = "/compressed" if self._pictures == COMPRESSED else ""
        return self._topic(f"overlay{suffix}")

    def _answer(self, reply: Reply, model_id: str) -> Any:
        kind = self._types[ANSWER]
        answer = reply.answer
        has_confidence = answer is not None and answer.confidence is not None
        confidence_kind = kind.CONFIDENCE_NONE
        if has_confidence:
            with_choices = bool(reply.question.query.choices)
            confidence_kind = (
                kind.CONFIDENCE_CHOICE_PROB if with_choices else kind.CONFIDENCE_MEAN_TOKEN_PROB
            )
        return kind(
            header=self._header(reply.newest),
            query_id=reply.question.query.query_id,
            sequence=reply.sequence,
            cameras=[image.camera for image in reply.images],
            frame_stamps=[self._stamp(image.stamp_ns) for image in reply.images],
            status=(answer.status if answer else Status.ERROR).value,
            error_code=kind.ERROR_NONE if answer else kind.ERROR_UNSUPPORTED_ENCODING,
            error_msg=reply.error,
            text=answer.text if answer else "",
            confidence_kind=confidence_kind,
            confidence=float(answer.confidence or 0.0) if answer else 0.0,
            tokens=self._tokens(answer),
            latency=self._latency(answer),
            frames_dropped=0,
            model_id=model_id,
            prune_method=answer.method if answer else "",
        )

    def _tokens(self, answer: Answer | None) -> Any:
        kind = self._types[f"{PACKAGE}/msg/TokenCounts"]
        if answer is None:
            return kind(visual_total=0, visual_kept=0, prompt_text=0, generated=0)
        return kind(**asdict(answer.tokens))

    def _latency(self, answer: Answer | None) -> Any:
        times = answer.times if answer and self._timings else StageTimes()
        return self._types[f"{PACKAGE}/msg/LatencyBreakdown"](**asdict(times))

    def _mask_array(self, reply: Reply, answer: Answer) -> Any:
        return self._types[MASKS](
            header=self._header(reply.newest),
            query_id=answer.query_id,
            sequence=reply.sequence,
            masks=[
                self._mask(mask, image)
                for mask, image in zip(answer.masks, reply.images, strict=True)
            ],
        )

    def _mask(self, mask: PatchMask, image: RecordedImage) -> Any:
        kind = self._types[f"{PACKAGE}/msg/PatchMask"]
        height, width = mask.frame.image.shape[:2]
        with_scores = self._scores and mask.scores is not None
        return kind(
            header=self._header(image),
            camera=mask.frame.camera,
            image_width=width,
            image_height=height,
            roi=self._types["sensor_msgs/msg/RegionOfInterest"](
                x_offset=mask.region.x,
                y_offset=mask.region.y,
                width=mask.region.width,
                height=mask.region.height,
                do_rectify=False,
            ),
            stage=kind.STAGE_POST_ENCODER,
            layer=0,
            grid_rows=mask.grid.rows,
            grid_cols=mask.grid.cols,
            kept=pack_bits(mask.kept),
            scores=np.asarray(mask.scores if with_scores else [], dtype=np.float32),
        )

    def _overlay(self, picture: NDArray[np.uint8], header: Any) -> Any:
        if self._pictures == RAW:
            return self._image(picture, header)
        return self._types[COMPRESSED_IMAGE](
            header=header,
            format="rgb8; jpeg compressed bgr8",
            data=np.frombuffer(to_jpeg(picture), dtype=np.uint8),
        )

    def _image(self, pixels: NDArray[np.uint8], header: Any) -> Any:
        height, width = pixels.shape[:2]
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        return self._types[IMAGE](
            header=header,
            height=height,
            width=width,
            encoding="mono8" if channels == 1 else "rgb8",
            is_bigendian=0,
            step=width * channels,
            data=np.ascontiguousarray(pixels).reshape(-1),
        )

    def _header(self, image: RecordedImage) -> Any:
        return self._types["std_msgs/msg/Header"](
            stamp=self._stamp(image.stamp_ns), frame_id=image.frame_id
        )

    def _stamp(self, nanoseconds: int) -> Any:
        seconds, rest = divmod(nanoseconds, 1_000_000_000)
        return self._types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=rest)


def to_jpeg(picture: NDArray[np.uint8], quality: int = JPEG_QUALITY) -> bytes:
    """(height, width, 3) uint8 RGB as JPEG."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise RuntimeError("OpenCV could not encode a JPEG")
    jpeg: bytes = encoded.tobytes()
    return jpeg
