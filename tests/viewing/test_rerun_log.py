"""What is logged of images, answers and masks, read back from the file."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip("rerun", reason="needs the extra 'view'")

from edge_atp.errors import BackendUnavailableError, BagError, ImageError
from edge_atp.types import PatchGrid, SourceRegion, Status
from edge_atp.viewing.events import STAGES, ShownAnswer, ShownImage, ShownMask
from edge_atp.viewing.messages import shown_image
from edge_atp.viewing.rerun_log import RerunLog, heat_levels

REGION = SourceRegion(80, 0, 480, 480)


def mask(camera: str = "front", scores: bool = True) -> ShownMask:
    kept = np.zeros((4, 4), dtype=bool)
    kept[1, 2] = True
    values = np.arange(16, dtype=np.float32).reshape(4, 4) if scores else None
    return ShownMask(camera, (640, 480), REGION, PatchGrid(4, 4), kept, values)


def answer(**fields) -> ShownAnswer:
    given = {
        "query_id": "q/1 x",
        "stamp_ns": 5_000_000_001,
        "status": Status.FINAL,
        "text": "red box",
        "confidence": 0.875,
        "visual_kept": 1,
        "visual_total": 16,
        "latency_s": dict.fromkeys(STAGES, 0.25),
        "masks": (mask(),),
    }
    return ShownAnswer(**(given | fields))


def log(path, *events):
    recording = RerunLog(path)
    for event in events:
        recording.show(event)
    recording.close()


def test_everything_of_an_answer_is_logged(tmp_path, read_back):
    path = tmp_path / "a.rrd"
    pixels = np.full((480, 640, 3), 7, np.uint8)
    log(path, ShownImage("front", 5_000_000_001, pixels=pixels), answer(question="what is it?"))

    found = read_back(path)
    wanted = {"/camera/front", "/camera/front/kept", "/camera/front/scores", "/answers"}
    wanted |= {f"/latency/{stage}" for stage in STAGES} | {"/tokens/kept", "/confidence/q_1_x"}
    assert wanted <= set(found.rows)
    assert found.values["/answers TextLog:text"] == ["what is it? -> red box (0.88, 1/16 tokens)"]
    assert found.values["/latency/prefill Scalars:scalars"] == [250.0]
    assert found.values["/confidence/q_1_x Scalars:scalars"] == [0.875]


def test_an_error_is_a_red_line_and_nothing_else(tmp_path, read_back):
    path = tmp_path / "a.rrd"
    log(path, answer(status=Status.ERROR, error_msg="no image yet", masks=(), question="where?"))

    found = read_back(path)
    assert found.values["/answers TextLog:text"] == ["where? -> ERROR: no image yet"]
    assert found.values["/answers TextLog:level"] == ["ERROR"]
    assert not any(entity.startswith(("/latency", "/tokens")) for entity in found.rows)


def test_zeros_of_a_bag_without_timings_are_no_latencies(tmp_path, read_back):
    path = tmp_path / "a.rrd"
    log(path, answer(latency_s=dict.fromkeys(STAGES, 0.0)))
    assert "/latency/total" not in read_back(path).rows


def test_the_heat_map_runs_from_the_lowest_to_the_highest_score():
    levels = heat_levels(np.array([[-1.0, 0.0], [1.0, 3.0]], dtype=np.float32))
    assert (levels[0, 0], levels[1, 1]) == (1, 64)
    assert levels[0, 0] < levels[0, 1] < levels[1, 0] < levels[1, 1]
    assert (heat_levels(np.full((2, 2), 5.0, np.float32)) == 1).all()


def stamped(**fields) -> SimpleNamespace:
    header = SimpleNamespace(stamp=SimpleNamespace(sec=3, nanosec=4), frame_id="cam")
    return SimpleNamespace(header=header, **fields)


def test_a_compressed_image_is_passed_on_as_it_is():
    jpeg = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    shown = shown_image("front", stamped(format="jpeg", data=jpeg), decode=None)
    assert (shown.encoded, shown.media_type, shown.stamp_ns) == (jpeg, "image/jpeg", 3_000_000_004)


def test_a_raw_image_is_decoded_and_a_broken_one_left_out():
    pixels = np.zeros((2, 2, 3), np.uint8)
    raw = stamped(encoding="rgb8", data=pixels.tobytes())
    shown = shown_image("front", raw, decode=lambda message: pixels)
    assert shown.pixels is pixels

    def refuse(message):
        raise ImageError("truncated")

    assert shown_image("front", stamped(format="jpeg", data=b"nonsense"), refuse) is None


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BagError, match="cannot write"):
        RerunLog(tmp_path / "file" / "out.rrd")


def test_an_address_that_is_none_is_refused():
    with pytest.raises(BackendUnavailableError, match=r"--save FILE\.rrd"):
        RerunLog(address="nonsense")
