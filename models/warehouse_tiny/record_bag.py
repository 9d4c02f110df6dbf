"""Record the shipped bag: a fixed camera watches the arm put one item away and fetch another.

    python -m models.warehouse_tiny.record_bag [--out launch/bags/warehouse_cell]

Writes a rosbag2 (mcap) with JPEG images and camera_info, and beside it questions.yaml: what can
be asked when, and the true answer. Needs MuJoCo; plays anywhere.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from models.warehouse_tiny.coverage import patch_coverage
from models.warehouse_tiny.facts import MIN_ITEM_PATCHES, MIN_PANEL_PATCHES
from models.warehouse_tiny.render import SceneRenderer
from models.warehouse_tiny.sequence import sequence
from models.warehouse_tiny.state import Camera, SceneState
from models.warehouse_tiny.vocabulary import (
    FIRST_ITEM,
    FIRST_PANEL,
    NUM_COLUMNS,
    SHELVES,
    slot_index,
    slot_name,
)

SEED = 6
FRAME_RATE_HZ = 5
DURATION_S = 24
SIZE = (640, 480)
JPEG_QUALITY = 80
START_NS = 1_767_225_600_000_000_000  # 2026-01-01, so that every recording is the same
FRAME_ID = "cell_camera_optical_frame"
IMAGE_TOPIC = "/camera/image_raw/compressed"
INFO_TOPIC = "/camera/camera_info"
_TYPES = get_typestore(Stores.ROS2_HUMBLE)
_VERSION = 8  # of the metadata; read by Humble and later


@dataclass(frozen=True)
class Check:
    """A question that has one answer from second ``at`` to second ``until``."""

    at: float
    until: float
    text: str
    answer: Callable[[SceneState], str]


def _held(state: SceneState) -> str:
    return state.held.name if state.held else "nothing"


def _hazard(state: SceneState) -> str:
    return state.hazard or "none"


def _place_of(name: str) -> Callable[[SceneState], str]:
    def answer(state: SceneState) -> str:
        slots = [slot for slot, item in enumerate(state.slots) if item and item.name == name]
        if len(slots) != 1:
            raise ValueError(f"{name!r} stands in {len(slots)} slots; ask for a unique item")
        return slot_name(slots[0])

    return answer


def _content(shelf: str, number: int) -> Callable[[SceneState], str]:
    def answer(state: SceneState) -> str:
        item = state.slots[slot_index(SHELVES.index(shelf), number - 1)]
        return item.name if item else "empty"

    return answer


def _count(shelf: str) -> Callable[[SceneState], str]:
    first = slot_index(SHELVES.index(shelf), 0)
    return lambda state: str(sum(item is not None for item in state.slots[first:][:NUM_COLUMNS]))


# The arm is in the way from 4.8 to 10.1 and from 14.9 to 20.2 s; the person stands from 12.5 s.
CHECKS = (
    Check(0.6, 4.8, "what is the gripper holding?", _held),
    Check(1.6, 4.8, "where is the red drum?", _place_of("red drum")),
    Check(2.6, 10.0, "what hazard is on the floor?", _hazard),
    Check(10.4, 14.6, "where is the red box?", _place_of("red box")),
    Check(11.6, 14.6, "how many objects are on the middle shelf?", _count("middle")),
    Check(12.8, 23.8, "what hazard is on the floor?", _hazard),
    Check(20.4, 23.8, "what is the gripper holding?", _held),
    Check(21.4, 23.8, "what is on the top shelf, slot 4?", _content("top", 4)),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Record the bag and its questions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("launch/bags/warehouse_cell"))
    parser.add_argument("--seed", type=int, default=SEED, help="of the sequence")
    args = parser.parse_args(arguments)
    states = list(sequence(args.seed, FRAME_RATE_HZ * DURATION_S + 1))
    shutil.rmtree(args.out, ignore_errors=True)
    renderer = SceneRenderer(*SIZE)
    try:
        _write_bag(args.out, states, renderer)
        questions = [_true_answer(check, states, renderer) for check in CHECKS]
    finally:
        renderer.close()
    header = "# Seconds count from the start of the recording; written by record_bag.\n"
    text = yaml.safe_dump(questions, sort_keys=False, width=100)
    (args.out / "questions.yaml").write_text(header + text, encoding="utf-8")
    size_mb = sum(path.stat().st_size for path in args.out.iterdir()) / 1e6
    print(f"{args.out}: {len(states)} frames, {size_mb:.1f} MB, {len(questions)} questions")


def _write_bag(path: Path, states: Sequence[SceneState], renderer: SceneRenderer) -> None:
    with Writer(path, version=_VERSION, storage_plugin=StoragePlugin.MCAP) as writer:
        images = writer.add_connection(
            IMAGE_TOPIC, "sensor_msgs/msg/CompressedImage", typestore=_TYPES
        )
        infos = writer.add_connection(INFO_TOPIC, "sensor_msgs/msg/CameraInfo", typestore=_TYPES)
        for number, state in enumerate(states):
            time_ns = START_NS + number * 1_000_000_000 // FRAME_RATE_HZ
            image = renderer.render(state, *SIZE, segmentation_scale=0.1).image
            for connection, message in (
                (infos, _camera_info(time_ns, state.look.camera)),
                (images, _compressed(time_ns, image)),
            ):
                data = _TYPES.serialize_cdr(message, connection.msgtype)
                writer.write(connection, time_ns, data)


def _true_answer(
    check: Check, states: Sequence[SceneState], renderer: SceneRenderer
) -> dict[str, Any]:
    """The entry of questions.yaml.

    Raises:
        ValueError: the answer changes within the check's seconds, or a slot is hidden then.
    """
    first, last = (round(second * FRAME_RATE_HZ) for second in (check.at, check.until))
    answers = {check.answer(state) for state in states[first : last + 1]}
    if len(answers) != 1:
        raise ValueError(f"{check.text!r} has several answers in {check.at}-{check.until} s")
    answer = answers.pop()
    for state in (states[first], states[last]):
        _require_visible(check, state, answer, renderer)
    return {"at": check.at, "until": check.until, "ask": check.text, "expect": answer}


def _require_visible(check: Check, state: SceneState, answer: str, renderer: SceneRenderer) -> None:
    area = patch_coverage(renderer.render(state, 224, 224).entities).sum(axis=1)
    for slot, item in enumerate(state.slots):
        shelf = SHELVES[slot // NUM_COLUMNS]
        concerned = answer == slot_name(slot) or f"{shelf} shelf" in check.text
        entity, least = (FIRST_ITEM, MIN_ITEM_PATCHES) if item else (FIRST_PANEL, MIN_PANEL_PATCHES)
        if concerned and area[entity + slot] < least:
            raise ValueError(f"{check.text!r}: {slot_name(slot)} is hidden at {check.at} s")


def _header(time_ns: int) -> Any:
    stamp = _TYPES.types["builtin_interfaces/msg/Time"](
        sec=time_ns // 1_000_000_000, nanosec=time_ns % 1_000_000_000
    )
    return _TYPES.types["std_msgs/msg/Header"](stamp=stamp, frame_id=FRAME_ID)


def _compressed(time_ns: int, image: np.ndarray) -> Any:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise RuntimeError("OpenCV could not encode a JPEG")
    kind = _TYPES.types["sensor_msgs/msg/CompressedImage"]
    return kind(header=_header(time_ns), format="rgb8; jpeg compressed bgr8", data=jpeg.reshape(-1))


def _camera_info(time_ns: int, camera: Camera) -> Any:
    """Pinhole without distortion; MuJoCo's fovy is the vertical angle of view, degrees."""
    width, height = SIZE
    focal = height / 2 / np.tan(np.deg2rad(camera.fovy) / 2)
    k = np.array([focal, 0, width / 2, 0, focal, height / 2, 0, 0, 1], dtype=np.float64)
    p = np.insert(k, (3, 6, 9), 0.0)
    roi = _TYPES.types["sensor_msgs/msg/RegionOfInterest"](
        x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
    )
    return _TYPES.types["sensor_msgs/msg/CameraInfo"](
        header=_header(time_ns),
        height=height,
        width=width,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=k,
        r=np.eye(3).reshape(-1),
        p=p,
        binning_x=0,
        binning_y=0,
        roi=roi,
    )


if __name__ == "__main__":
    main()
