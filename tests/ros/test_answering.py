"""From a question to its one final answer, with the real pipeline and without DDS."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_msgs.msg import Answer, PatchMaskArray
from edge_atp_ros.answering import Answerer, Loaded
from edge_atp_ros.cameras import RAW, Cameras
from edge_atp_ros.images import to_image
from edge_atp_ros.parameters import NodeSettings
from edge_atp_ros.questions import Intake, Question
from rclpy.logging import get_logger
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from edge_atp.pipeline import Pipeline
from edge_atp.types import Query


class Published:
    """Stands for the node's publishers."""

    partial_wanted = False

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.masks: list[PatchMaskArray] = []
        self.pictures: list[tuple[Any, ...]] = []

    def publish_answer(self, message: Answer) -> None:
        self.answers.append(message)

    def publish_masks(self, message: PatchMaskArray) -> None:
        self.masks.append(message)

    def publish_pictures(self, masks, headers, caption) -> None:
        self.pictures.append((masks, headers, caption))
        assert len(masks) == len(headers), "each mask is drawn on the image it belongs to"


class Client:
    """Holds the goal of a question; no longer wants it once ``unwanted`` says so."""

    def __init__(self, unwanted=lambda: False) -> None:
        self.canceled = unwanted
        self.finals: list[tuple[Answer, PatchMaskArray | None]] = []

    def begun(self) -> None: ...

    def partial(self, message: Answer) -> None: ...

    def final(self, message: Answer, masks: PatchMaskArray | None) -> None:
        self.finals.append((message, masks))


class Bench:
    """An answerer whose cameras are handed messages in place of DDS."""

    def __init__(self, pipeline: Pipeline, *cameras: str) -> None:
        self.cameras = Cameras(cameras, [f"{n}/image" for n in cameras], RAW, 10)
        self.published = Published()
        self.answerer = Answerer(
            Loaded(pipeline, NodeSettings(cameras=cameras, camera_topics=cameras)),
            self.cameras,
            Intake(cameras, self.cameras.dropped),
            self.published,
            lambda: 0,
            get_logger("test_answering"),
        )

    def serve(self, client: Client) -> Answer:
        names = self.cameras.names
        question = Question(
            Query("what is the gripper holding?", query_id="q"),
            names,
            accepted_s=0.0,
            reply=client,
            frames=self.cameras.newest(names),
        )
        self.answerer.serve(question, lambda: False)
        (answer,) = self.published.answers
        ((told, _masks),) = client.finals
        assert told == answer
        return answer


@pytest.fixture(scope="module")
def pipeline():
    pipeline = Pipeline.load()
    yield pipeline
    pipeline.close()


def picture(frame_id: str) -> bytes:
    pixels = np.full((48, 64, 3), 128, np.uint8)
    return serialize_message(to_image(pixels, Header(frame_id=frame_id)))


def test_a_complete_answer_has_its_masks_and_pictures(pipeline):
    bench = Bench(pipeline, "a", "b")
    bench.cameras._store("a", picture("frame a"), Image)
    bench.cameras._store("b", picture("frame b"), Image)

    answer = bench.serve(Client())

    assert answer.status in (Answer.STATUS_FINAL, Answer.STATUS_TRUNCATED), answer.error_msg
    assert answer.cameras == ["a", "b"]
    ((masks, headers, caption),) = bench.published.pictures
    assert [header.frame_id for header in headers] == ["frame a", "frame b"]
    assert len(masks) == len(bench.published.masks[0].masks) == 2
    assert caption == f"what is the gripper holding?\n{answer.text}"


def test_one_cancelled_before_patches_were_chosen_has_neither(pipeline):
    """It has an image and no mask; drawing it once ended in an exception after the answer."""
    bench = Bench(pipeline, "a")
    bench.cameras._store("a", picture("frame a"), Image)

    answer = bench.serve(Client(unwanted=lambda: bench.answerer.encodings.num_encoded > 0))

    assert bench.answerer.encodings.num_encoded == 1, "it was cancelled after encoding"
    assert answer.status == Answer.STATUS_CANCELED
    assert answer.header.frame_id == "frame a"
    assert bench.published.masks == []
    assert bench.published.pictures == []


def test_a_refusal_names_the_images_before_the_malformed_one(pipeline):
    bench = Bench(pipeline, "a", "b")
    bench.cameras._store("a", picture("frame a"), Image)
    bench.cameras._store("b", picture("frame b")[:40], Image)

    answer = bench.serve(Client())

    assert answer.status == Answer.STATUS_ERROR
    assert "camera 'b' sent a malformed Image message (40 bytes)" in answer.error_msg
    assert answer.cameras == ["a"]
    assert answer.header.frame_id == "frame a"
