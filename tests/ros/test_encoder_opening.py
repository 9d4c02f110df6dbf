"""Only the encoder that a question wants is opened, in the inference thread, and run: node parts.

On a tiny random model that holds all three encoders; without DDS.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")
pytest.importorskip("torch", reason="the exporter needs the `export` extra (torch)")
pytest.importorskip("transformers", reason="the exporter needs the `export` extra")

from edge_atp_msgs.msg import Answer, PruneConfig
from edge_atp_msgs.msg import Query as QueryMessage
from edge_atp_ros import loading
from edge_atp_ros.answering import Answerer, Loaded
from edge_atp_ros.cameras import RAW, Cameras
from edge_atp_ros.encodings import Encodings
from edge_atp_ros.frames import StoredFrame
from edge_atp_ros.images import to_image
from edge_atp_ros.parameters import NodeSettings, Settings
from edge_atp_ros.questions import Intake
from edge_atp_ros.reception import Reception
from edge_atp_ros.scheduling import Scheduler
from edge_atp_ros.worker import Worker
from rclpy.logging import get_logger
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from edge_atp.config import PipelineConfig
from edge_atp.pipeline import Pipeline
from edge_atp.runtime.engine import Engine
from edge_atp.types import Policy, PruneSpec, Query

QUESTION = "where is the red box on the shelf?"
GROUPS = ["vision_group.0", "vision_group.1", "vision_group.2", "vision_tail"]
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sys.path.append(str(Path(__file__).parents[1] / "export"))
    from tiny_checkpoints import export_three_encoders

    return export_three_encoders(tmp_path_factory.mktemp("three_encoders"))


def config(model: Path, **settings: Any) -> PipelineConfig:
    return PipelineConfig(model=str(model), engine="ort-cpu", num_threads=1, **settings)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(role, name of the thread) of each graph that an engine loaded from now on opens."""
    found: list[tuple[str, str]] = []
    open_graph = Engine.open_graph

    def note(engine: Engine, role: str) -> Any:
        found.append((role, threading.current_thread().name))
        return open_graph(engine, role)

    monkeypatch.setattr(Engine, "open_graph", note)
    return found


@pytest.fixture
def pipeline(model: Path) -> Any:
    pipeline = loading.load(config(model))
    yield pipeline
    pipeline.close()


def picture(seed: int = 0) -> Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (28, 28, 3)).astype(np.uint8)
    return to_image(pixels, Header(frame_id="optical"))


class Published:
    """Stands for the node's publishers."""

    partial_wanted = False

    def __init__(self) -> None:
        self.answers: list[Answer] = []

    def publish_answer(self, message: Answer) -> None:
        self.answers.append(message)

    def publish_masks(self, message: Any) -> None: ...

    def publish_pictures(self, *given: Any) -> None: ...


class Node:
    """The parts behind the node's callbacks, with their real inference thread."""

    def __init__(self, pipeline: Pipeline) -> None:
        node = NodeSettings(cameras=("front",), camera_topics=("image",))
        settings = Settings(pipeline.config, node)
        self.cameras = Cameras(node.cameras, node.camera_topics, RAW, 10)
        self.published = Published()
        intake = Intake(node.cameras, self.cameras.dropped)
        self.answerer = Answerer(
            Loaded(pipeline, node),
            self.cameras,
            intake,
            self.published,
            lambda: 0,
            get_logger("test_encoder_opening"),
        )
        scheduler = Scheduler(
            clock=time.perf_counter,
            frames_for=self.answerer.frames_for,
            frame_wait_s=lambda: 0.0,
            hopeless=self.answerer.hopeless,
            is_stale=self.answerer.is_stale,
            capacity=64,
            max_standing=4,
        )
        self.worker = Worker(
            self.answerer.serve,
            self.answerer.cancel,
            lambda question, error: pytest.fail(f"{question}: {error}"),
            scheduler,
            self.cameras.newest,
        )
        self.reception = Reception(intake, self.answerer, self.worker, lambda: settings)
        self.cameras._store("front", serialize_message(picture()), Image)

    def __enter__(self) -> Node:
        self.worker.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.worker.stop()

    def ask(self, method: str, keep: int = 6) -> str:
        """Ask as a callback does; returns the question's id."""
        prune = PruneConfig(
            policy=PruneConfig.POLICY_TOKEN_BUDGET, method=method, max_visual_tokens=keep
        )
        message = QueryMessage(text=QUESTION, max_new_tokens=2, prune=prune)
        return self.reception.ask(message).query_id

    def answer(self, query_id: str) -> Answer:
        """The final answer to a question, once it is there."""
        end = time.monotonic() + PATIENCE_S
        while not (found := [a for a in self.published.answers if a.query_id == query_id]):
            assert time.monotonic() < end, f"no answer to {query_id}"
            time.sleep(0.01)
        (answer,) = found
        return answer


def test_the_whole_encoder_does_not_run_for_a_method_with_its_own(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.engine, "encode_image", lambda *_: pytest.fail("encoded whole"))
    with Node(pipeline) as node:
        answers = [node.answer(node.ask("evit")) for _ in range(2)]
        encodings = node.answerer.encodings
        assert encodings.num_encoded == 1, "the second question shares the encoding of the first"
        assert node.answer(node.ask("evit", 8)).tokens.visual_kept == 9  # one fused token besides
        assert encodings.num_encoded == 2
    for answer in answers:
        assert answer.status in (Answer.STATUS_FINAL, Answer.STATUS_TRUNCATED), answer.error_msg
        assert (answer.prune_method, answer.tokens.visual_kept) == ("evit", 7)
        taken = answer.latency
        stages = (taken.queue_wait, taken.preprocess, taken.vision_encode, taken.prune)
        assert sum(stages) + taken.prefill + taken.decode == pytest.approx(taken.total, rel=1e-3)
        assert min(stages) >= 0.0
    encoding = [answer.latency.vision_encode for answer in answers]
    assert encoding[0] > 0.0 == encoding[1]


def test_graphs_are_opened_in_the_inference_thread_on_first_use(
    opened: list[tuple[str, str]], pipeline: Pipeline
) -> None:
    opened.clear()
    with Node(pipeline) as node:
        asked = [node.ask(method) for method in ("evit", "cut+atp", "evit", "ivtp", "atp")]
        for query_id in asked:
            answer = node.answer(query_id)
            assert answer.error_code == Answer.ERROR_NONE, answer.error_msg
    roles = [role for role, _ in opened]
    assert roles == [*GROUPS, "vision_cut", "vision_cls"]
    assert {thread for _, thread in opened} == {"inference"}
    assert len(node.published.answers) == len(asked)


def test_configuring_opens_what_the_default_method_needs(
    model: Path, opened: list[tuple[str, str]]
) -> None:
    pipeline = loading.load(config(model, method="ivtp", keep_ratio=0.4))
    assert {*GROUPS, "vision_cls"} < {role for role, _ in opened}
    opened.clear()
    with Node(pipeline) as node:
        node.answer(node.ask("ivtp"))
        node.answer(node.ask("evit"))
        assert opened == []
        # Other settings while it runs: nothing is opened again, and nothing for a callback.
        changed = loading.reconfigured(pipeline, config(model, method="cut+atp", keep_ratio=0.3))
        node.answerer.loaded = Loaded(changed, node.answerer.loaded.settings)
        assert opened == []
        assert node.answer(node.ask("")).prune_method == "cut+atp"
        node.answer(node.ask("tome"))
    assert opened == [("vision_cut", "inference")]
    pipeline.close()


@pytest.mark.parametrize(
    ("method", "role"), [("evit", "vision_group.2"), ("cut+atp", "vision_cut")]
)
def test_a_graph_that_is_gone_is_one_answer_with_the_reason(
    pipeline: Pipeline, model: Path, tmp_path: Path, method: str, role: str
) -> None:
    graph = model / f"{role}.onnx"
    aside = graph.rename(tmp_path / graph.name)
    try:
        with Node(pipeline) as node:
            for _ in range(2):
                answer = node.answer(node.ask(method))
                assert answer.status == Answer.STATUS_ERROR
                assert answer.error_code == Answer.ERROR_BACKEND
                assert graph.name in answer.error_msg
            assert node.answer(node.ask("atp")).error_code == Answer.ERROR_NONE
            aside.rename(graph)
            assert node.answer(node.ask(method)).error_code == Answer.ERROR_NONE
        assert len(node.published.answers) == 4
    finally:
        if aside.exists():
            aside.rename(graph)


def test_what_the_directory_cannot_run_is_refused_before_it_waits(
    opened: list[tuple[str, str]], pipeline: Pipeline
) -> None:
    assert opened, "with the engine"
    opened.clear()
    node = Node(pipeline)  # its inference thread does not run
    answer = node.answer(node.ask("cut+atp", 8))
    assert answer.error_code == Answer.ERROR_INVALID_QUERY
    assert "leaves 7" in answer.error_msg
    assert opened == []


def test_ever_other_budgets_of_one_frame_do_not_fill_the_memory(pipeline: Pipeline) -> None:
    encodings = Encodings(1)
    frame = StoredFrame("front", 1, 1, serialize_message(picture()), Image)
    image = encodings.read(frame)

    def encode(method: str, keep: int) -> Any:
        spec = PruneSpec(Policy.TOKEN_BUDGET, method=method, max_visual_tokens=keep)
        (cut,) = pipeline.wants_cut(Query(QUESTION, prune=spec), 1)
        return encodings.encode(pipeline, image, frame, None, cut=cut)[0]

    whole = encode("atp", 4)
    for keep in range(2, 12):
        encode("evit", keep)
        assert encode("atp", keep) is whole, "what is in use stays"
    assert len(encodings._known[frame].encodings) == 4
    assert encodings.num_encoded == 11
