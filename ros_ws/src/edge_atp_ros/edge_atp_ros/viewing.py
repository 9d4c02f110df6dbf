"""A running VLM node in the rerun viewer: its cameras' images, answers, masks and latencies.

The cameras and their topics are the node's own: ModelInfo names the cameras, and the parameters
``cameras`` and ``camera_topics`` of the viewer say on which topics they are.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import rclpy
from edge_atp_msgs.msg import Query
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, Image

from edge_atp.errors import EdgeAtpError
from edge_atp.viewing.messages import shown_answer, shown_image
from edge_atp.viewing.rerun_log import RerunLog
from edge_atp_ros.client import Reply, VlmClient
from edge_atp_ros.declaring import declare
from edge_atp_ros.images import to_rgb
from edge_atp_ros.process import StartError, StopRequest

NODE_NAME = "viewer"
_REMEMBERED_QUESTIONS = 1000
_POLL_S = 0.1


class Viewer(Node):
    """See the module's docstring.

    Args:
        log: where to show; None: made from the parameters ``save`` and ``connect``.
        vlm: name of the VLM node.
    Raises:
        StartError: rerun is missing, or no viewer can be opened.
    """

    def __init__(self, log: RerunLog | None = None, vlm: str = "vlm_node", **options: Any) -> None:
        super().__init__(NODE_NAME, **options)
        save = declare(self, "save", "", ".rrd file to write; empty: open a viewer")
        connect = declare(self, "connect", "", "address of a viewer that runs")
        vlm = declare(self, "vlm", vlm, "name of the VLM node")
        names = declare(self, "cameras", ("camera",), "names of the VLM node's cameras")
        topics = declare(
            self, "camera_topics", ("camera/image_raw",), "image topic of each, as the VLM node's"
        )
        if len(names) != len(topics):
            raise StartError(f"cameras has {len(names)} names, camera_topics {len(topics)} topics")
        try:
            self._log = log or RerunLog(Path(save) if save else None, connect)
        except EdgeAtpError as error:
            raise StartError(str(error)) from error
        self._lock = threading.Lock()  # answers come in the client's thread
        self._texts: OrderedDict[str, str] = OrderedDict()
        self.num_answers = self.num_images = 0
        for name, topic in zip(names, topics, strict=True):
            self._watch(name, topic.removesuffix("/compressed"))
        self.create_subscription(Query, f"{vlm}/query", self._on_query, 100)
        self._vlm = VlmClient(self, vlm, guard=None)
        self._vlm.subscribe(self._on_reply, guard=None)

    def destroy_node(self) -> None:
        """Write what is pending."""
        if hasattr(self, "_vlm"):
            self._vlm.close()
            self._log.close()
        super().destroy_node()

    def _watch(self, camera: str, topic: str) -> None:
        def show(message: Any) -> None:
            image = shown_image(camera, message, to_rgb)
            if image is not None:
                with self._lock:
                    self._log.show(image)
                    self.num_images += 1

        qos = qos_profile_sensor_data
        self.create_subscription(Image, topic, show, qos)
        self.create_subscription(CompressedImage, f"{topic}/compressed", show, qos)

    def _on_query(self, query: Query) -> None:
        """Answers carry no question; those asked on the topic are remembered for them."""
        with self._lock:
            self._texts[query.query_id] = query.text
            while len(self._texts) > _REMEMBERED_QUESTIONS:
                self._texts.popitem(last=False)

    def _on_reply(self, reply: Reply) -> None:
        with self._lock:
            text = self._texts.get(reply.query_id, "")
            self._log.show(shown_answer(reply.answer, reply.masks, text))
            self.num_answers += 1


def watch(log: RerunLog, vlm: str, seconds: float) -> int:
    """Show a running node until a signal, or for some seconds (0: without end)."""
    stop = StopRequest()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    viewer = Viewer(log, vlm, parameter_overrides=[Parameter("vlm", value=vlm)])
    executor = SingleThreadedExecutor()
    executor.add_node(viewer)
    until_s = time.monotonic() + seconds if seconds > 0 else float("inf")
    while not stop and time.monotonic() < until_s:
        executor.spin_once(timeout_sec=_POLL_S)
    executor.shutdown()
    viewer.destroy_node()
    rclpy.shutdown()
    print(f"{viewer.num_answers} answers, {viewer.num_images} images")
    return 0
