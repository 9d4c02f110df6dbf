"""The VLM node: a lifecycle node that answers questions about what its cameras see.

    configure   check the parameters, load the model (every hash), warm up
    activate    subscribe to cameras and questions, start the inference thread
    deactivate  answer what is pending, stop listening
    cleanup     release the model

Callbacks store or enqueue; the inference thread does the rest (``answering``).
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable

from edge_atp_msgs.msg import Query as QueryMessage
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.serialization import deserialize_message
from rclpy.subscription import Subscription
from std_msgs.msg import String

from edge_atp.errors import ConfigError, EdgeAtpError
from edge_atp_ros import loading, parameters
from edge_atp_ros.answering import Answerer, Loaded
from edge_atp_ros.ask_action import AskAction, Callbacks
from edge_atp_ros.cameras import Cameras
from edge_atp_ros.diagnostics import Diagnostics, Report
from edge_atp_ros.giving_up import give_up
from edge_atp_ros.health import Health
from edge_atp_ros.host import free_what_was_loaded, spare_what_is_loaded
from edge_atp_ros.lifecycle_guard import refuse_invalid_transitions
from edge_atp_ros.listening import listen
from edge_atp_ros.model_info import manifest_sha256, model_info
from edge_atp_ros.process import StartError
from edge_atp_ros.publishers import Outputs
from edge_atp_ros.questions import Intake, Question
from edge_atp_ros.reception import Reception
from edge_atp_ros.scheduling import Scheduler
from edge_atp_ros.standing import StandingQuestions
from edge_atp_ros.standing_file import read_standing_questions
from edge_atp_ros.standing_services import StandingServices
from edge_atp_ros.watchdog import Watchdog
from edge_atp_ros.worker import Worker

NODE_NAME = "vlm_node"
# Backwards by a nanosecond or more, or to another clock.
_SET_BACK = JumpThreshold(
    min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True
)


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
        self._cameras = Cameras(
            node.cameras,
            node.camera_topics,
            node.transport,
            node.camera_depth,
            node.sync_history,
            lambda: self._settings.node.sync_tolerance,
        )
        self._intake = Intake(node.cameras, self._cameras.dropped)
        self._health = Health()
        self._watchdog: Watchdog | None = None
        self._outputs: Outputs | None = None
        self._answerer: Answerer | None = None
        self._worker: Worker | None = None
        self._reception: Reception | None = None
        self._standing: StandingQuestions | None = None
        self._action: AskAction | None = None
        self._manifest_sha256 = ""
        self._questions: list[Subscription] = []
        self.add_on_set_parameters_callback(self._on_parameters)
        self._diagnostics = Diagnostics(self, self._report)
        self._standing_services = StandingServices(self, lambda: self._standing)
        self._clock_jumps = self.get_clock().create_jump_callback(
            _SET_BACK, post_callback=self._on_clock_set_back
        )

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
        """Stop the node's threads before the publishers and services they use are gone."""
        if hasattr(self, "_standing_services"):
            self._stop_serving()
            self._release()
            self._standing_services.close()
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
        settings = self._settings
        given = settings.node.standing_questions
        standing_messages = read_standing_questions(given) if given else []
        pipeline = loading.load(settings.pipeline)
        self._manifest_sha256 = manifest_sha256(pipeline)
        self._outputs = Outputs(self, self._health)
        self._answerer = Answerer(
            Loaded(pipeline, settings.node, settings.regions),
            self._cameras,
            self._intake,
            self._outputs,
            lambda: self.get_clock().now().nanoseconds,
            self.get_logger(),
        )
        self._worker = self._new_worker(self._answerer)
        self._reception = Reception(
            self._intake, self._answerer, self._worker, lambda: self._settings
        )
        standing = StandingQuestions(
            self._reception, self._worker, self._intake, lambda: self.get_clock().now().to_msg()
        )
        self._answerer.on_final = standing.record
        standing.set_all(standing_messages)
        self._standing = standing
        self._action = AskAction(
            self,
            Callbacks(
                lambda: self._worker is not None and self._worker.serving,
                self._reception.ask,
                self._reception.withdraw,
            ),
        )
        self._announce()
        spare_what_is_loaded()
        self.get_logger().info(
            f"configured: model {pipeline.manifest.model_id} on {pipeline.engine.backend}"
            f" ({pipeline.engine.backend_reason})"
        )

    def _new_worker(self, answerer: Answerer) -> Worker:
        node = self._settings.node
        scheduler = Scheduler(
            clock=time.perf_counter,
            frames_for=answerer.frames_for,
            frame_wait_s=lambda: self._settings.node.frame_wait,
            hopeless=answerer.hopeless,
            is_stale=answerer.is_stale,
            capacity=node.queue_size,
            max_standing=node.max_standing_questions,
            fair_every=node.fair_every,
        )
        return Worker(
            serve=answerer.serve,
            cancel=answerer.cancel,
            on_error=self._on_worker_error,
            scheduler=scheduler,
            newest=self._cameras.newest,
        )

    def _begin_serving(self) -> None:
        worker = self._worker
        assert worker is not None  # an inactive node is a configured one
        worker.start()
        self._watchdog = Watchdog(
            self._settings.node.stuck_after, worker.silent_s, self._on_stuck, with_timer=True
        )
        # Cameras first: of an image and a question that arrive together, the executor then
        # handles the image first, and the question is answered about it.
        self._cameras.subscribe(self, worker.frame_arrived)
        self._questions = [
            listen(self, QueryMessage, "~/query", self._on_query, self._on_lost),
            listen(self, String, "~/query_text", self._on_text, self._on_lost),
        ]
        node = self._settings.node
        cameras = ", ".join(
            f"{name} on {self.resolve_topic_name(topic)}"
            for name, topic in zip(node.cameras, node.camera_topics, strict=True)
        )
        self.get_logger().info(f"active: cameras {cameras}")

    def _stop_serving(self) -> None:
        for subscription in self._questions:
            _drain(subscription)
            self.destroy_subscription(subscription)
        self._questions = []
        self._cameras.unsubscribe(self)
        if self._worker is not None:
            self._worker.stop()
        if self._watchdog is not None:  # after the worker: it may be stuck while stopping
            self._watchdog.stop()
            self._watchdog = None
        if self._answerer is not None:
            self._answerer.encodings.clear()
            self._answerer.refusal_log.flush()

    def _release(self) -> None:
        self._worker = self._reception = self._standing = None
        if self._action is not None:
            self._action.close()
            self._action = None
        if self._answerer is not None:
            self._answerer.loaded.pipeline.close()
            self._answerer = None
            free_what_was_loaded()
        if self._outputs is not None:
            self._outputs.close()
            self._outputs = None

    # Questions -------------------------------------------------------------------------------

    def _on_lost(self, count: int) -> None:
        self._health.lost(count)
        self.get_logger().warning(
            f"{count} questions were lost before they arrived: they come faster"
            " than the node can refuse them",
            throttle_duration_sec=1.0,
        )

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

    def _ask(self, message: QueryMessage) -> None:
        assert self._reception is not None  # questions arrive only while the node is active
        self._reception.ask(message)

    def _on_clock_set_back(self, _jump: TimeJump) -> None:
        """Frames from before would look young, or stay the newest for ever."""
        self._cameras.forget()
        if self._worker is not None:
            self._worker.forget_frames()
        self.get_logger().warning("the ROS clock was set back: the frames so far are forgotten")

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
            last_words=(
                self._answerer.refusal_log.flush,
                self._diagnostics.publish,
                self._outputs.flush,
            ),
        )

    # Parameters and state --------------------------------------------------------------------

    def _on_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        try:
            settings = self._settings.changed(changes)
            if self._answerer is not None:
                pipeline = self._answerer.loaded.pipeline
                if settings.pipeline != self._settings.pipeline:
                    pipeline = loading.reconfigured(pipeline, settings.pipeline)
                self._answerer.loaded = Loaded(pipeline, settings.node, settings.regions)
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
            standing=self._worker.skips() if self._worker else {},
        )

    def _announce(self) -> None:
        if self._answerer is None or self._outputs is None:
            return
        message = model_info(
            self._answerer.loaded.pipeline, self._manifest_sha256, self._settings.node.cameras
        )
        message.header.stamp = self.get_clock().now().to_msg()
        self._outputs.publish_model_info(message)


def _drain(subscription: Subscription) -> None:
    """Hand over what has arrived and was not taken yet: it is owed an answer, too."""
    while True:
        with subscription.handle:
            taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
        if taken is None:
            return
        subscription.callback(taken[0])
