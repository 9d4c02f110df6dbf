"""The VLM node: a lifecycle node that answers questions about what its cameras see.

    configure   check the parameters, load the model (every hash), warm up
    activate    subscribe to cameras and questions, start the inference thread
    deactivate  answer what is pending, stop listening
    cleanup     release the model

Callbacks store or enqueue; the inference thread does the rest (``answering``).
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from edge_atp_msgs.msg import Query as QueryMessage
from rcl_interfaces.msg import SetParametersResult
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message
from rclpy.subscription import Subscription
from std_msgs.msg import String

from edge_atp.config import PipelineConfig
from edge_atp.errors import ConfigError, EdgeAtpError
from edge_atp.pipeline import Pipeline
from edge_atp.types import Frame, Query
from edge_atp_ros import parameters
from edge_atp_ros.answering import WITHDRAWN, Answerer, Loaded
from edge_atp_ros.ask_action import AskAction, Callbacks
from edge_atp_ros.cameras import CameraImage, Cameras
from edge_atp_ros.diagnostics import Diagnostics, Report
from edge_atp_ros.error_codes import WithdrawnError
from edge_atp_ros.giving_up import give_up
from edge_atp_ros.health import Health
from edge_atp_ros.lifecycle_guard import refuse_invalid_transitions
from edge_atp_ros.model_info import manifest_sha256, model_info
from edge_atp_ros.process import StartError
from edge_atp_ros.publishers import Outputs
from edge_atp_ros.questions import Intake, Question
from edge_atp_ros.reply import Reply
from edge_atp_ros.watchdog import Watchdog
from edge_atp_ros.worker import Worker

NODE_NAME = "vlm_node"
# Reliable; a burst of questions waits here until the executor has taken each of them.
_QUERY_QOS = QoSProfile(depth=1000)
_WARM_UP_SIZE = (480, 640, 3)


class VlmNode(LifecycleNode):
    """See the module's docstring; topics and parameters are in the package's README.

    Raises:
        StartError: a parameter given at the start is out of range.
    """

    def __init__(self) -> None:
        super().__init__(NODE_NAME)
        refuse_invalid_transitions(self)
        try:
            self._settings = parameters.declare_all(self)
        except ConfigError as error:
            self.destroy_node()
            raise StartError(str(error)) from error
        node = self._settings.node
        self._cameras = Cameras(node.cameras, node.camera_topics, node.transport, node.camera_depth)
        self._intake = Intake(node.cameras, self._cameras.dropped)
        self._health = Health()
        self._watchdog: Watchdog | None = None
        self._outputs: Outputs | None = None
        self._answerer: Answerer | None = None
        self._worker: Worker | None = None
        self._action: AskAction | None = None
        self._manifest_sha256 = ""
        self._questions: list[Subscription] = []
        self.add_on_set_parameters_callback(self._on_parameters)
        self._diagnostics = Diagnostics(self, self._report)

    # Lifecycle -------------------------------------------------------------------------------

    def start(self) -> None:
        """Bring the node to active if parameter ``autostart`` says so.

        Raises:
            StartError: a transition failed.
        """
        if not self._settings.node.autostart:
            self.get_logger().info("unconfigured; waiting for a lifecycle manager (autostart: off)")
            return
        for transition in (self.trigger_configure, self.trigger_activate):
            if transition() != TransitionCallbackReturn.SUCCESS:
                raise StartError(f"{NODE_NAME} did not become active; the error is above")

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and warm up; FAILURE with the reason in the log if that is impossible."""
        return self._transition("configure", self._load, super().on_configure, state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Listen to cameras and questions."""
        return self._transition("activate", self._begin_serving, super().on_activate, state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Answer what is pending, stop listening."""
        self._stop_serving()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release the model."""
        self._release()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and release, from whatever state."""
        self._stop_serving()
        self._release()
        return super().on_shutdown(state)

    def finish(self) -> bool:
        """Stop serving; False while answers and results still have to reach their clients."""
        self._stop_serving()
        if self._action is not None and not self._action.settled():
            return False
        if self._outputs is not None:
            self._outputs.flush()
        return True

    def destroy_node(self) -> None:
        """Stop the inference thread before the publishers it uses are gone."""
        if hasattr(self, "_worker"):
            self._stop_serving()
            self._release()
        super().destroy_node()

    def _transition(
        self,
        name: str,
        action: Callable[[], None],
        proceed: Callable[[LifecycleState], TransitionCallbackReturn],
        state: LifecycleState,
    ) -> TransitionCallbackReturn:
        """Carry out a transition; what it raises is logged (rclpy would swallow it)."""
        try:
            action()
        except EdgeAtpError as error:
            self.get_logger().error(f"{name} failed: {error}")
        except Exception:
            self.get_logger().error(f"{name} failed unexpectedly\n{traceback.format_exc()}")
        else:
            return proceed(state)
        self._stop_serving()
        if name == "configure":
            self._release()
        return TransitionCallbackReturn.FAILURE

    def _load(self) -> None:
        pipeline = Pipeline.load(self._settings.pipeline)
        _warm_up(pipeline)
        self._manifest_sha256 = manifest_sha256(pipeline)
        self._outputs = Outputs(self, self._health)
        self._answerer = Answerer(
            Loaded(pipeline, self._settings.node),
            self._cameras,
            self._intake,
            self._outputs,
            lambda: self.get_clock().now().nanoseconds,
            self.get_logger(),
        )
        self._action = AskAction(
            self, Callbacks(lambda: self._worker is not None, self._ask, self._withdraw)
        )
        self._announce()
        self.get_logger().info(
            f"configured: model {pipeline.manifest.model_id} on {pipeline.engine.backend}"
        )

    def _begin_serving(self) -> None:
        answerer = self._answerer
        assert answerer is not None  # an inactive node is a configured one
        self._worker = Worker(
            serve=answerer.serve,
            cancel=answerer.cancel,
            on_error=self._on_worker_error,
            capacity=self._settings.node.queue_size,
        )
        self._watchdog = Watchdog(
            self._settings.node.stuck_after,
            self._worker.silent_s,
            self._on_stuck,
            with_timer=True,
        )
        # Cameras first: of an image and a question that arrive together, the executor then
        # handles the image first, and the question is answered about it.
        self._cameras.subscribe(self)
        self._questions = [
            self.create_subscription(QueryMessage, "~/query", self._on_query, _QUERY_QOS, raw=True),
            self.create_subscription(String, "~/query_text", self._on_text, _QUERY_QOS, raw=True),
        ]
        node = self._settings.node
        cameras = ", ".join(
            f"{name} on {self.resolve_topic_name(topic)}"
            for name, topic in zip(node.cameras, node.camera_topics, strict=True)
        )
        self.get_logger().info(f"active: cameras {cameras}")

    def _stop_serving(self) -> None:
        for subscription in self._questions:
            self.destroy_subscription(subscription)
        self._questions = []
        self._cameras.unsubscribe(self)
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
        if self._watchdog is not None:  # after the worker: it may be stuck while stopping
            self._watchdog.stop()
            self._watchdog = None

    def _release(self) -> None:
        if self._action is not None:
            self._action.close()
            self._action = None
        if self._answerer is not None:
            self._answerer.loaded.pipeline.close()
            self._answerer = None
            # The sessions sit in reference cycles; without this their memory stays for a while.
            gc.collect()
        if self._outputs is not None:
            self._outputs.close()
            self._outputs = None

    # Questions -------------------------------------------------------------------------------

    def _on_query(self, serialized: bytes) -> None:
        try:
            message = deserialize_message(serialized, QueryMessage)
        except Exception as error:  # the middleware documents no error class
            self.get_logger().warning(f"~/query: malformed message, no id to answer: {error}")
            return
        self._ask(message)

    def _on_text(self, serialized: bytes) -> None:
        try:
            message = deserialize_message(serialized, String)
        except Exception as error:
            self.get_logger().warning(f"~/query_text: malformed message: {error}")
            return
        self._ask(QueryMessage(text=message.data))

    def _ask(
        self,
        message: QueryMessage,
        reply: Reply | None = None,
        images: Sequence[CameraImage] = (),
    ) -> Question:
        answerer, worker = self._answerer, self._worker
        assert answerer is not None  # questions arrive only while the node is active
        assert worker is not None
        question = replace(self._intake.identify(message), reply=reply, images=tuple(images))
        try:
            pipeline = answerer.loaded.pipeline
            question = self._intake.accept(
                message,
                question,
                self._settings.node.max_frame_age,
                self._settings.pipeline.max_new_tokens,
            )
            pipeline.check(question.query, num_frames=len(question.cameras))
            worker.submit(question)
        except Exception as error:  # anything: the question is owed an answer
            answerer.refuse(question, error)
        return question

    def _withdraw(self, question: Question) -> None:
        assert self._answerer is not None  # goals arrive only while the node is active
        if self._worker is not None and self._worker.withdraw(question):
            self._answerer.refuse(question, WithdrawnError(WITHDRAWN))

    def _on_worker_error(self, question: Question, error: Exception) -> None:
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        self.get_logger().error(f"{question.query_id}: publishing failed\n{trace}")

    def _on_stuck(self, silent_s: float) -> None:
        assert self._answerer is not None  # the watchdog lives only while the node is active
        assert self._worker is not None
        assert self._outputs is not None
        give_up(
            f"the inference engine has shown no sign of life for {silent_s:.1f} s (stuck_after:"
            f" {self._settings.node.stuck_after:g} s); the node ends, to be started again",
            self._worker,
            self._answerer,
            self._health,
            last_words=(self._diagnostics.publish, self._outputs.flush),
        )

    # Parameters and state --------------------------------------------------------------------

    def _on_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        try:
            settings = self._settings.changed(changes)
            if self._answerer is not None:
                pipeline = _reconfigured(self._answerer.loaded.pipeline, settings.pipeline)
                self._answerer.loaded = Loaded(pipeline, settings.node)
        except EdgeAtpError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._settings = settings
        self._announce()
        return SetParametersResult(successful=True)

    def _report(self) -> Report:
        loaded = self._answerer.loaded if self._answerer else None
        return Report(
            # rclpy has no public name for it, in Humble and in Jazzy.
            state=self._state_machine.current_state[1],
            backend=loaded.pipeline.engine.backend if loaded else "",
            waiting=len(self._worker) if self._worker else 0,
            queue_size=self._settings.node.queue_size,
            health=self._health.report(),
            cameras=self._cameras.counts(),
            model_id=loaded.pipeline.manifest.model_id if loaded else "",
            method=loaded.pipeline.default_budget.method if loaded else "",
        )

    def _announce(self) -> None:
        if self._answerer is None or self._outputs is None:
            return
        message = model_info(
            self._answerer.loaded.pipeline, self._manifest_sha256, self._settings.node.cameras
        )
        message.header.stamp = self.get_clock().now().to_msg()
        self._outputs.publish_model_info(message)


def _reconfigured(old: Pipeline, config: PipelineConfig) -> Pipeline:
    """The loaded model with other defaults; reads no file again, they may be gone by now."""
    same_budget = config.latency_budget_ms == old.config.latency_budget_ms
    return Pipeline(
        old.engine, old.engine.directory, config, latency=old.latency if same_budget else None
    )


def _warm_up(pipeline: Pipeline) -> None:
    """The first run of a backend allocates and tunes; no question should pay for it."""
    frame = Frame(np.full(_WARM_UP_SIZE, 128, dtype=np.uint8))
    pipeline.answer(Query("warm up", max_new_tokens=2), [frame])
