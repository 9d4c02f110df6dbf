"""The result bag: what it holds, that it is the same every time, and that ROS reads it."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
from replay_run import BAG, replay
from rosbags.highlevel import AnyReader

from edge_atp.mask import mask_image, unpack_bits
from edge_atp.replay import bags
from edge_atp.replay.answering import Reply
from edge_atp.replay.interfaces import (
    ANSWER,
    COMPRESSED_IMAGE,
    IMAGE,
    MASKS,
    find_definitions,
)
from edge_atp.replay.messages import MessageFactory
from edge_atp.replay.questions import ReplayQuestion
from edge_atp.replay.recording import open_recording
from edge_atp.replay.report import STAGES
from edge_atp.types import (
    Frame,
    PatchGrid,
    PatchMask,
    Policy,
    PruneSpec,
    Query,
    SourceRegion,
    StageTimes,
)


@pytest.fixture(scope="session")
def messages(result):
    """Messages of the result by topic, in order: (time_ns, message)."""
    by_topic = {}
    with AnyReader([result[0]]) as reader:
        for connection, time_ns, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            by_topic.setdefault(connection.topic, []).append((time_ns, message))
        types = {connection.topic: connection.msgtype for connection in reader.connections}
    return types, by_topic


def stamp_ns(header):
    return header.stamp.sec * 10**9 + header.stamp.nanosec


def test_two_replays_are_the_same_file_byte_by_byte(result, tmp_path):
    assert replay(tmp_path / "again.mcap", "--every", 10) == 0
    assert (tmp_path / "again.mcap").read_bytes() == result[0].read_bytes()


def test_topics_and_types_are_the_live_nodes(messages):
    types, by_topic = messages
    assert types == {
        "/vlm_node/answer": ANSWER,
        "/vlm_node/patch_mask": MASKS,
        "/vlm_node/mask_image": IMAGE,
        "/vlm_node/overlay/compressed": COMPRESSED_IMAGE,
    }
    assert len({len(of_topic) for of_topic in by_topic.values()}) == 1


def test_messages_carry_the_time_and_header_of_their_frame(messages, typestore):
    with open_recording(BAG, typestore) as recording:
        frames = {image.stamp_ns: image for image in recording.images()}
    for of_topic in messages[1].values():
        for time_ns, message in of_topic:
            frame = frames[stamp_ns(message.header)]
            assert time_ns == frame.time_ns
            assert message.header.frame_id == frame.frame_id


def test_answers_count_up_and_join_their_masks(messages):
    answers = [message for _, message in messages[1]["/vlm_node/answer"]]
    masks = [message for _, message in messages[1]["/vlm_node/patch_mask"]]
    for query_id in {answer.query_id for answer in answers}:
        mine = [answer.sequence for answer in answers if answer.query_id == query_id]
        assert mine == list(range(len(mine)))
    for answer, array in zip(answers, masks, strict=True):
        assert (array.query_id, array.sequence) == (answer.query_id, answer.sequence)
        (mask,) = array.masks
        kept = unpack_bits(mask.kept, PatchGrid(mask.grid_rows, mask.grid_cols))
        assert np.count_nonzero(kept) == answer.tokens.visual_kept
        assert len(mask.scores) == 0
        assert answer.text
        assert set(dataclasses.asdict(answer.latency).values()) - {answer.latency.__msgtype__} == {
            0.0
        }


def test_pictures_show_the_mask(messages):
    (_, array) = messages[1]["/vlm_node/patch_mask"][0]
    (_, picture) = messages[1]["/vlm_node/mask_image"][0]
    (_, overlay) = messages[1]["/vlm_node/overlay/compressed"][0]
    (mask,) = array.masks
    grid = PatchGrid(mask.grid_rows, mask.grid_cols)
    region = SourceRegion(mask.roi.x_offset, mask.roi.y_offset, mask.roi.width, mask.roi.height)
    blank = Frame(np.zeros((480, 640, 3), np.uint8))
    kept = unpack_bits(mask.kept, grid).reshape(-1)
    expected = mask_image(PatchMask(blank, grid, region, kept))
    np.testing.assert_array_equal(picture.data.reshape(480, 640), expected)
    assert picture.encoding == "mono8"
    decoded = cv2.imdecode(overlay.data, cv2.IMREAD_COLOR)
    assert decoded.shape[1] == 640
    assert decoded.shape[0] > 480  # the caption stands below


def test_a_folder_is_a_rosbag2_with_metadata(tmp_path):
    options = ("--every", 20, "--pictures", "none")
    assert replay(tmp_path / "run", *options) == 0
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "metadata.yaml",
        "result.mcap",
    ]
    with AnyReader([tmp_path / "run"]) as reader:
        assert {c.topic for c in reader.connections} == {"/vlm_node/answer", "/vlm_node/patch_mask"}


def test_raw_pictures_timings_scores_and_node_are_options(tmp_path):
    options = ("--pictures", "raw", "--timings", "--scores", "--node", "cell/vlm")
    assert replay(tmp_path / "raw", "--every", 25, *options) == 0
    with AnyReader([tmp_path / "raw"]) as reader:
        first = {}
        for connection, _, data in reader.messages():
            first.setdefault(connection.topic, reader.deserialize(data, connection.msgtype))
    overlay = first["/cell/vlm/overlay"]
    assert (overlay.encoding, overlay.width, overlay.step) == ("rgb8", 640, 1920)
    assert len(overlay.data) == overlay.step * overlay.height
    times = first["/cell/vlm/answer"].latency
    stages = ("queue_wait", "preprocess", "vision_encode", "prune", "prefill", "decode")
    assert times.vision_encode > 0
    assert sum(getattr(times, stage) for stage in stages) == pytest.approx(times.total, rel=1e-4)
    (mask,) = first["/cell/vlm/patch_mask"].masks
    assert len(mask.scores) == mask.grid_rows * mask.grid_cols


@pytest.fixture
def reply(pipeline, typestore):
    """The reply to one question about the first frame of the shipped bag."""
    with open_recording(BAG, typestore) as recording:
        image = next(recording.images())
    spec = PruneSpec(Policy.TOKEN_BUDGET, max_visual_tokens=60)
    query = Query("what is the gripper holding?", "q1", prune=spec)
    return Reply(ReplayQuestion(query), (image,), 4, pipeline.answer(query, [image.frame()]))


@pytest.mark.parametrize("scores", [False, True])
def test_messages_equal_those_of_the_live_node(reply, typestore, scores):
    """Field by field, after a trip through either serialisation."""
    convert = pytest.importorskip("edge_atp_ros.convert", reason="needs the built ROS workspace")
    serialization = pytest.importorskip("rclpy.serialization")
    from edge_atp_msgs.msg import Answer, PatchMaskArray
    from std_msgs.msg import Header

    image = reply.images[0]
    header = Header(stamp=convert.to_stamp(image.stamp_ns), frame_id=image.frame_id)
    answer = dataclasses.replace(reply.answer, times=StageTimes())
    live = {
        "/vlm_node/answer": convert.to_answer(answer, [header], ["camera"], 4, 0),
        "/vlm_node/patch_mask": convert.to_mask_array(answer, [header], 4, scores),
    }
    factory = MessageFactory(typestore, "/vlm_node", "none", scores=scores)
    written = dict(factory.messages(reply, reply.answer.model_id))
    for topic, kind in (("/vlm_node/answer", Answer), ("/vlm_node/patch_mask", PatchMaskArray)):
        data = typestore.serialize_cdr(written[topic], factory.topics[topic])
        read = serialization.deserialize_message(bytes(data), kind)
        same = serialization.serialize_message(live[topic])
        assert read == serialization.deserialize_message(same, kind)


def test_ros_reads_the_result(result):
    """rclpy's own deserialiser takes every message."""
    interfaces = pytest.importorskip("edge_atp_msgs.msg", reason="needs the built ROS workspace")
    serialization = pytest.importorskip("rclpy.serialization")
    from sensor_msgs.msg import CompressedImage, Image

    kinds = {
        ANSWER: interfaces.Answer,
        MASKS: interfaces.PatchMaskArray,
        IMAGE: Image,
        COMPRESSED_IMAGE: CompressedImage,
    }
    rosbag2 = bags.load_rosbags("rosbag2")
    with rosbag2.Reader(result[0]) as reader:
        texts = []
        for connection, _, data in reader.messages():
            message = serialization.deserialize_message(bytes(data), kinds[connection.msgtype])
            if connection.msgtype == ANSWER:
                texts.append(message.text)
        assert all(texts)


@pytest.mark.parametrize("name", [ANSWER, MASKS])
def test_the_schema_hashes_are_those_ros_generated(typestore, name):
    generated = find_definitions() / f"{name.rpartition('/')[2]}.json"
    if not generated.is_file():
        pytest.skip("needs the built and sourced ROS workspace (Iron or later)")
    description = json.loads(generated.read_text(encoding="utf-8"))
    hashes = {entry["type_name"]: entry["hash_string"] for entry in description["type_hashes"]}
    assert typestore.hash_rihs01(name) == hashes[name]


def test_the_report_counts_and_shows(result):
    content = json.loads((result[1] / "report.json").read_text(encoding="utf-8"))
    answers = content["answers"]
    assert (
        content["num_answers"]
        == len(answers)
        == sum(question["num_answers"] for question in content["questions"])
    )
    assert content["right"] + content["wrong"] == len(answers)
    assert set(content["latency_s"]) == set(STAGES)
    assert content["latency_s"]["total"]["p50"] > 0
    page = (result[1] / "report.html").read_text(encoding="utf-8")
    changes = wrong = 0
    last = {}
    for answer in answers:
        changed = last.get(answer["query_id"]) != answer["text"]
        changes += changed
        wrong += answer["right"] is False and not changed
        last[answer["query_id"]] = answer["text"]
    assert page.count("<img ") == changes + wrong
    assert page.count("src='data:image/jpeg;base64,") == page.count("<img ")
    assert "http" not in page
    assert "<script" not in page
