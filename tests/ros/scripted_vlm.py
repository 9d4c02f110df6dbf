"""A stand-in for the VLM node: answers every question with what the test says."""

from __future__ import annotations

from typing import Any

import rclpy
from edge_atp_msgs.msg import Answer, PatchMask, PatchMaskArray, Query
from edge_atp_msgs.srv import RemoveQuery, SetQuery
from rclpy.context import Context
from waiting import Spinner

_DEPTH = 1000  # as the node: a burst must not push questions out
FRAME_ID = "cell_camera_optical_frame"


class ScriptedVlm:
    """Node /vlm_node in a context and a thread of its own.

    texts: answer by question. fields: further fields of every answer. age_s: of its frame.
    silent: take questions and say nothing. with_masks: publish a mask that keeps everything.
    """

    def __init__(self) -> None:
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("vlm_node", context=self.context)
        self.texts: dict[str, str] = {}
        self.fields: dict[str, Any] = {"status": Answer.STATUS_FINAL, "confidence": 0.9}
        self.age_s = 0
        self.silent = False
        self.with_masks = True
        self.queries: list[Query] = []
        self.removed: list[str] = []
        self._answers = self.node.create_publisher(Answer, "~/answer", _DEPTH)
        self._masks = self.node.create_publisher(PatchMaskArray, "~/patch_mask", _DEPTH)
        self.node.create_subscription(Query, "~/query", self._on_query, _DEPTH)
        self.node.create_service(SetQuery, "~/set_query", self._on_set)
        self.node.create_service(RemoveQuery, "~/remove_query", self._on_remove)
        self._spinner = Spinner(self.node)

    def say(self, query_id: str, text: str, sequence: int = 0) -> None:
        """Publish an answer that nobody asked for, as to a standing question."""
        self._publish(Answer(query_id=query_id, sequence=sequence, text=text, **self.fields))

    def close(self) -> None:
        self._spinner.stop()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def _on_query(self, query: Query) -> None:
        self.queries.append(query)
        if not self.silent:
            text = self.texts.get(query.text, "")
            self._publish(Answer(query_id=query.query_id, text=text, **self.fields))

    def _on_set(self, request: SetQuery.Request, response: SetQuery.Response) -> Any:
        self.queries.append(request.query)
        response.success = bool(request.query.text)
        response.error_msg = "" if request.query.text else "text is empty; give a question"
        response.query_id = request.query.query_id or "assigned"
        return response

    def _on_remove(self, request: RemoveQuery.Request, response: RemoveQuery.Response) -> Any:
        self.removed.append(request.query_id)
        response.success = True
        return response

    def _publish(self, answer: Answer) -> None:
        answer.header.stamp = self.node.get_clock().now().to_msg()
        answer.header.stamp.sec -= self.age_s
        answer.header.frame_id = FRAME_ID
        answer.cameras, answer.frame_stamps = ["camera"], [answer.header.stamp]
        masks = PatchMaskArray(
            header=answer.header,
            query_id=answer.query_id,
            sequence=answer.sequence,
            masks=[whole_mask(answer)],
        )
        if self.with_masks:
            self._masks.publish(masks)
        self._answers.publish(answer)


def whole_mask(answer: Answer) -> PatchMask:
    """A mask of 16 x 16 patches, all kept, over the centre square of 640x480."""
    mask = PatchMask(header=answer.header, camera="camera", image_width=640, image_height=480)
    mask.roi.x_offset, mask.roi.width, mask.roi.height = 80, 480, 480
    mask.grid_rows = mask.grid_cols = 16
    mask.kept = [255] * 32
    return mask
