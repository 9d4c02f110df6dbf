"""`make demo` as a user runs it."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_msgs.msg import Answer, PatchMaskArray
from edge_atp_ros.demo_client import Check, Outcome, load_checks
from edge_atp_ros.demo_report import contact_sheet
from sensor_msgs.msg import CompressedImage

DEMO = [sys.executable, "-m", "edge_atp_ros.demo"]
QUESTIONS = Path(__file__).resolve().parents[2] / "launch/bags/warehouse_cell/questions.yaml"
CHECK = Check(1.0, 3.0, "what?", "red box")


def test_every_answer_is_right_and_drawn(start_process, tmp_path):
    process = start_process([*DEMO, "--out", str(tmp_path)])

    code = process.wait(timeout_s=300)
    output = process.output()
    assert code == 0, output
    checks = load_checks(QUESTIONS)
    assert len(checks) >= 6
    assert output.count("dense") >= len(checks)
    assert "pruned / dense" in output
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert len(pictures) == 2 * len(checks) + 1
    sheet = cv2.imread(str(tmp_path / "contact_sheet.png"))
    assert sheet.shape[1] > 1500
    assert sheet.std() > 20


def test_an_interrupt_ends_every_process(start_process, tmp_path):
    process = start_process([*DEMO, "--out", str(tmp_path)])
    process.wait_for("what is the gripper holding?")
    process.signal_group(signal.SIGINT)

    assert process.wait() == 130
    assert "Traceback" not in process.output()
    for log in (tmp_path / "logs").glob("*.log"):
        assert "Traceback" not in log.read_text()


def outcome(text: str = "red box", second: float = 1.5, **fields) -> Outcome:
    answer = Answer(text=text, status=fields.pop("status", Answer.STATUS_FINAL))
    everything = {"masks": PatchMaskArray(), "frame": CompressedImage()} | fields
    return Outcome(CHECK, "dense", answer, second=second, **everything)


@pytest.mark.parametrize(
    ("result", "fault"),
    [
        (outcome(), ""),
        (outcome("Red box"), ""),
        (outcome("blue box"), "'blue box' instead of 'red box'"),
        (outcome(second=3.4), "second 3.4"),
        (outcome(second=0.2), "second 0.2"),
        (outcome(status=Answer.STATUS_TRUNCATED), "not complete"),
        (outcome(masks=None), "mask"),
        (Outcome(CHECK, "dense", None, None, None, 0.0), "no answer"),
    ],
)
def test_an_outcome_is_judged(result, fault):
    assert fault in result.fault
    assert bool(result.fault) == bool(fault)


def test_the_sheet_holds_every_picture():
    pictures = [np.full((480 + 10 * n, 640, 3), 40 * n, np.uint8) for n in range(5)]
    sheet = contact_sheet(pictures)
    for n in range(5):
        assert (sheet == 40 * n).all(axis=-1).sum() > 480 * 300, n
