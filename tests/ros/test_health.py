"""Counting, percentiles, diagnostics, the host's sensors and the watchdog, without a node."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from diagnostic_msgs.msg import DiagnosticStatus
from edge_atp_msgs.msg import Answer
from edge_atp_ros import health as health_module
from edge_atp_ros.cameras import CameraCounts
from edge_atp_ros.diagnostics import (
    Rates,
    Report,
    camera_statuses,
    host_status,
    latency_status,
    node_status,
    standing_status,
)
from edge_atp_ros.health import Health
from edge_atp_ros.host import (
    free_what_was_loaded,
    resident_bytes,
    spare_what_is_loaded,
    temperatures_c,
)
from edge_atp_ros.log_line import log_line
from edge_atp_ros.turns import Skips
from edge_atp_ros.watchdog import Watchdog
from waiting import PATIENCE_S, wait_until


def answer(
    status: int = Answer.STATUS_FINAL, error: int = Answer.ERROR_NONE, **latency: float
) -> Answer:
    message = Answer(status=status, error_code=error)
    for stage, seconds in latency.items():
        setattr(message.latency, stage, seconds)
    return message


def values(status: DiagnosticStatus) -> dict[str, str]:
    return {entry.key: entry.value for entry in status.values}


def report(health: Health, state: str = "active", **fields) -> Report:
    return Report(
        state=state,
        backend="ort-cpu",
        waiting=3,
        health=health.report(),
        cameras=fields.pop("cameras", {}),
        **fields,
    )


def test_percentiles_are_those_of_each_stage():
    health = Health()
    seconds = np.random.default_rng(1).permutation(np.arange(1, 101)) / 1000
    for value in seconds:
        health.answered(answer(prefill=value, total=2 * value))
    latency = health.report().latency_s

    assert latency["prefill"] == pytest.approx(np.percentile(seconds, [50, 95, 99]))
    assert latency["total"] == pytest.approx(2 * np.percentile(seconds, [50, 95, 99]))
    assert latency["decode"] == (0.0, 0.0, 0.0)


def test_percentiles_cover_the_newest_answers_only():
    health = Health()
    for _ in range(2000):
        health.answered(answer(total=100.0))
    for _ in range(health_module._WINDOW):
        health.answered(answer(total=1.0))
    now = health.report()

    assert now.window == health_module._WINDOW
    assert now.latency_s["total"] == (1.0, 1.0, 1.0)
    assert now.by_status == {Answer.STATUS_FINAL: 2000 + health_module._WINDOW}


def test_refusals_count_but_say_nothing_about_latency():
    health = Health()
    health.answered(answer(Answer.STATUS_ERROR, Answer.ERROR_REJECTED, total=5.0))
    now = health.report()

    assert now.latency_s == {}
    assert now.by_error == {Answer.ERROR_REJECTED: 1}
    assert now.engine_failures == 0, "a full queue is no failure of the engine"


def test_the_rate_forgets(monkeypatch):
    now_s = 1000.0
    monkeypatch.setattr(health_module.time, "monotonic", lambda: now_s)
    health = Health()
    for _ in range(50):
        health.answered(answer(Answer.STATUS_ERROR, Answer.ERROR_BACKEND))
    assert health.report().answers_per_s == 5.0
    assert health.report().engine_failures == 50
    now_s += 60.0
    assert health.report().answers_per_s == 0.0
    assert health.report().engine_failures == 0


def test_the_nodes_status_says_what_runs_and_what_became_of_the_questions():
    health = Health()
    health.answered(answer())
    health.answered(answer(Answer.STATUS_ERROR, Answer.ERROR_STALE_FRAME))
    status = node_status("/n", report(health, model_id="m", method="atp", queue_size=64), 0)

    assert (status.level, status.message) == (DiagnosticStatus.OK, "active")
    said = values(status)
    assert said["backend"] == "ort-cpu"
    assert said["questions_waiting"] == "3"
    assert (said["answers_final"], said["answers_error"]) == ("1", "1")
    assert said["errors_stale_frame"] == "1"
    assert "errors_backend" not in said


def test_levels_rise_with_what_is_wrong():
    health = Health()
    assert node_status("/n", report(health), 1).level == DiagnosticStatus.WARN
    assert "this name" in node_status("/n", report(health), 1).message
    health.answered(answer(Answer.STATUS_ERROR, Answer.ERROR_OUT_OF_MEMORY))
    failing = node_status("/n", report(health), 0)
    assert failing.level == DiagnosticStatus.WARN
    assert "failed 1 times" in failing.message
    health.fail("stuck")
    health.fail("a later reason")
    broken = node_status("/n", report(health), 0)
    assert (broken.level, broken.message) == (DiagnosticStatus.ERROR, "stuck")


def test_latency_and_host_are_in_units_people_read():
    health = Health()
    health.answered(answer(prefill=0.0125))
    said = values(latency_status("/n", health.report()))
    assert said["prefill_p50_ms"] == "12.50"
    assert said["answers"] == "1"
    said = values(host_status("/n", 123_456_789, {"gpu-thermal": 51.25}))
    assert said == {"resident_mb": "123.5", "temperature_gpu-thermal_c": "51.2"}
    assert values(host_status("/n", None, {})) == {}


def test_a_cameras_rate_is_what_arrived_between_two_reports():
    rates = Rates()
    assert rates.update({"a": CameraCounts(received=100)}, 10.0) == {"a": 0.0}
    assert rates.update({"a": CameraCounts(received=160)}, 12.0) == {"a": 30.0}
    assert rates.update({"a": CameraCounts(received=160)}, 13.0) == {"a": 0.0}


def test_a_silent_camera_is_a_warning_while_active():
    cameras = {"a": CameraCounts(received=5, last_s=90.0), "b": CameraCounts(), "c": CameraCounts()}
    cameras["c"] = CameraCounts(received=1, last_s=99.5)
    health = Health()

    def levels(state: str) -> list[bytes]:
        rates = dict.fromkeys(cameras, 0.0)
        made = camera_statuses("/n", report(health, state, cameras=cameras), rates, 100.0, 0)
        return [status.level for status in made]

    assert levels("active") == [DiagnosticStatus.WARN, DiagnosticStatus.WARN, DiagnosticStatus.OK]
    assert levels("inactive") == [DiagnosticStatus.OK] * 3


def test_standing_questions_say_why_frames_were_skipped():
    skips = {"b": Skips(offered=9, turns=5, own=1, others=3, rate=7), "a": Skips()}
    said = values(standing_status("/n", skips))

    assert said["standing_questions"] == "2"
    assert said["b"] == "frames 9, turns 5; skipped: 1 still answering, 3 others first, 7 rate"


def test_a_log_line_tells_the_question_and_its_outcome():
    message = answer(total=0.0423, queue_wait=0.001)
    message.query_id, message.sequence, message.text = "aisle-3", 7, "top shelf"
    message.cameras = ["left", "right"]
    message.header.stamp.sec, message.header.stamp.nanosec = 12, 500_000_000
    message.tokens.visual_kept, message.tokens.visual_total, message.tokens.generated = 64, 256, 5
    assert log_line(message) == (
        "query_id=aisle-3 sequence=7 status=final cameras=left,right stamp=12.500000 kept=64/256"
        ' generated=5 text="top shelf" queue_ms=1.0 total_ms=42.3'
    )


def test_a_log_line_cannot_be_forged():
    message = answer(Answer.STATUS_ERROR, Answer.ERROR_INVALID_QUERY)
    message.query_id = "x status=final\n[INFO] all is well"
    message.error_msg = 'camera "x" is unknown'
    line = log_line(message)

    assert "\n" not in line
    assert line.startswith('query_id="x status=final\\n[INFO] all is well" sequence=0 status=error')
    assert 'error_code=invalid_query error_msg="camera \\"x\\" is unknown"' in line


def test_a_frames_age_is_told_by_the_clock_that_stamped_it():
    cameras = {"a": CameraCounts(received=1, last_s=99.9, stamp_ns=8_500_000_000)}
    made = report(Health(), cameras=cameras)
    (status,) = camera_statuses("/n", made, {"a": 29.97}, 100.0, 10_000_000_000)
    said = values(status)

    assert (said["frame_age_s"], said["seconds_since_last"]) == ("1.500", "0.100")
    assert said["rate_hz"] == "29.97"


def test_resident_memory_is_that_of_this_process(tmp_path):
    psutil = pytest.importorskip("psutil")
    assert resident_bytes() == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)
    assert resident_bytes(tmp_path / "missing") is None


def zone(folder, number: int, kind: str, temperature: str) -> None:
    path = folder / f"thermal_zone{number}"
    path.mkdir()
    (path / "type").write_text(f"{kind}\n")
    (path / "temp").write_text(temperature)


def test_temperatures_are_read_as_a_jetson_gives_them(tmp_path):
    zone(tmp_path, 0, "cpu-thermal", "48500\n")
    zone(tmp_path, 1, "gpu-thermal", "")  # asleep: the read gives nothing, or fails
    zone(tmp_path, 2, "soc-thermal", "47000\n")
    zone(tmp_path, 10, "soc-thermal", "-3000\n")
    (tmp_path / "cooling_device0").mkdir()

    assert temperatures_c(tmp_path) == {
        "cpu-thermal": 48.5,
        "soc-thermal": 47.0,
        "soc-thermal#2": -3.0,
    }
    assert temperatures_c(tmp_path / "missing") == {}


def test_the_watchdog_reports_silence_and_only_silence():
    silence_s, reported = [0.0], threading.Event()
    watchdog = Watchdog(0.05, lambda: silence_s[0], lambda _silent_s: reported.set())
    try:
        assert not reported.wait(0.3)
        silence_s[0] = 0.06
        assert reported.wait(PATIENCE_S)
    finally:
        watchdog.stop()


def test_the_watchdog_survives_an_error_in_what_it_calls(capfd):
    calls: list[float] = []

    def fail(silent_s: float) -> None:
        calls.append(silent_s)
        raise RuntimeError("publisher is gone")

    watchdog = Watchdog(0.02, lambda: 1.0, fail)
    wait_until(lambda: len(calls) >= 2, "it goes on")
    watchdog.stop()
    assert "publisher is gone" in capfd.readouterr().err


def test_a_limit_of_zero_watches_nothing():
    before = set(threading.enumerate())
    watchdog = Watchdog(0.0, lambda: 1e9, lambda _silent_s: pytest.fail("reported"))
    assert set(threading.enumerate()) <= before
    watchdog.stop()


def test_a_call_that_holds_the_interpreter_ends_the_process_with_its_stack():
    """No Python thread runs then; only the C timer does. `PyDLL` keeps the interpreter's lock."""
    program = """
import ctypes, time
from edge_atp_ros.log_line import log_line
from edge_atp_ros.turns import Skips
from edge_atp_ros.watchdog import Watchdog
Watchdog(1.0, lambda: 0.0, lambda silent_s: None, with_timer=True)
time.sleep(0.5)
def stuck_native_call():
    ctypes.PyDLL(None).sleep(600)
stuck_native_call()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 1
    assert "stuck_native_call" in ended.stderr


def test_what_is_loaded_is_spared_by_collections_until_it_is_freed():
    class Session:
        def __init__(self) -> None:
            self.itself = self

    session = Session()
    gone = weakref.ref(session)
    spare_what_is_loaded()
    try:
        del session
        gc.collect()
        assert gone() is not None
    finally:
        free_what_was_loaded()
    assert gone() is None
