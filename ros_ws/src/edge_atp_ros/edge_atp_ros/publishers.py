"""Everything the node publishes, and with what quality of service.

Answers go out before the pictures: drawing a 4K overlay takes longer than answering. The masks,
a few hundred bytes, go out before the answer they belong to.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge_atp_msgs import msg as msgs
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from edge_atp import types
from edge_atp.mask import mask_image, overlay
from edge_atp_ros.health import Health
from edge_atp_ros.images import to_image

# Deep enough that a burst of refusals does not overwrite answers that are still being delivered.
_ANSWER_DEPTH = 1000
# All are offered as reliable, because that matches both best-effort and reliable subscribers.
_PARTIAL_DEPTH = 10
# A planner that needs masks must get them of a burst of answers, too; a mask takes some KB.
_MASK_DEPTH = 100
_PICTURE_DEPTH = 2
_FLUSH_S = 0.5


class Outputs:
    """The node's publishers; may be used from the inference thread."""

    def __init__(self, node: Node, health: Health) -> None:
        self._node = node
        self._health = health
        self._answer = self._create(msgs.Answer, "answer", _ANSWER_DEPTH)
        self._partial = self._create(msgs.Answer, "answer_partial", _PARTIAL_DEPTH)
        self._masks = self._create(msgs.PatchMaskArray, "patch_mask", _MASK_DEPTH)
        self._mask_image = self._create(Image, "mask_image", _PICTURE_DEPTH)
        self._overlay = self._create(Image, "overlay", _PICTURE_DEPTH)
        self._model_info = self._create(msgs.ModelInfo, "model_info", 1, latched=True)

    def close(self) -> None:
        """Remove the publishers from the node."""
        for publisher in (
            self._answer,
            self._partial,
            self._masks,
            self._mask_image,
            self._overlay,
            self._model_info,
        ):
            self._node.destroy_publisher(publisher)

    def flush(self) -> None:
        """Wait, not for long, until every subscriber has acknowledged the answers."""
        self._answer.wait_for_all_acked(Duration(seconds=_FLUSH_S))

    @property
    def partial_wanted(self) -> bool:
        """Whether anyone listens to partial answers."""
        return self._partial.get_subscription_count() > 0

    def publish_answer(self, message: msgs.Answer) -> None:
        """Publish a final answer."""
        self._health.answered(message)
        self._answer.publish(message)

    def publish_partial(self, message: msgs.Answer) -> None:
        """Publish the answer so far."""
        self._partial.publish(message)

    def publish_masks(self, message: msgs.PatchMaskArray) -> None:
        """Publish the masks of an answer."""
        self._masks.publish(message)

    def publish_model_info(self, message: msgs.ModelInfo) -> None:
        """Publish what is loaded, for subscribers of now and later."""
        self._model_info.publish(message)

    def publish_pictures(
        self, masks: Sequence[types.PatchMask], headers: Sequence[Header], caption: str
    ) -> None:
        """Draw and publish the pictures that someone subscribes to."""
        draw_mask = self._mask_image.get_subscription_count() > 0
        draw_overlay = self._overlay.get_subscription_count() > 0
        for mask, header in zip(masks, headers, strict=True):
            if draw_mask:
                self._mask_image.publish(to_image(mask_image(mask), header))
            if draw_overlay:
                self._overlay.publish(to_image(overlay(mask, caption), header))

    def _create(self, kind: type, name: str, depth: int, latched: bool = False) -> Publisher:
        durability = DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
        qos = QoSProfile(depth=depth, reliability=ReliabilityPolicy.RELIABLE, durability=durability)
        return self._node.create_publisher(kind, f"~/{name}", qos)
