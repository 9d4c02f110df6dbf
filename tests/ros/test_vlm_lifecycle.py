"""Configure, activate, deactivate, clean up, fail, be interrupted, be killed: real processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import psutil
import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_msgs.msg import Answer
from edge_atp_ros import runner as runner_module
from edge_atp_ros.runner import Runner
from edge_atp_ros.system import NO_BAG, WarehouseArguments, warehouse
from faulty_node import ENDLESS, PROGRAM
from lifecycle_msgs.msg import Transition
from vlm_client import QUESTION, VlmClient, make_image, pattern

from edge_atp.runtime.find_model import find_model

SHARE = Path(__file__).resolve().parents[2] / "launch"
NODE = [sys.executable, "-m", "edge_atp_ros.vlm_node", "--ros-args"]
FINAL = {Answer.STATUS_FINAL, Answer.STATUS_TRUNCATED}


@pytest.fixture
def client(early_client):
    return early_client


@pytest.fixture(scope="module")
def damaged_model(tmp_path_factory):
    """A copy of the default model that tests damage and mend."""
    path = tmp_path_factory.mktemp("model") / "copy"
    shutil.copytree(find_model("warehouse_tiny").path, path)
    return path


def truncate(path: Path) -> str:
    file = path / "vision.onnx"
    file.write_bytes(file.read_bytes()[:-100])
    return "vision.onnx"


def flip_a_bit(path: Path) -> str:
    file = path / "decoder.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return "decoder.onnx"


def remove(path: Path) -> str:
    (path / "embed_tokens.npy").unlink()
    return "embed_tokens.npy"


def leave_out_a_tensor(path: Path) -> str:
    """A graph without one of its weights, hashes and sizes made to match."""
    onnx = pytest.importorskip("onnx", reason="needs the export extra")
    file = path / "project.onnx"
    graph = onnx.load(file)
    del graph.graph.initializer[0]
    file.write_bytes(graph.SerializeToString())
    manifest = json.loads((path / "manifest.json").read_text())
    entry = next(entry for entry in manifest["files"] if entry["path"] == file.name)
    entry["bytes"] = file.stat().st_size
    entry["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    return "project.onnx"


def break_the_manifest(path: Path) -> str:
    (path / "manifest.json").write_text("{")
    return "manifest.json"


def test_a_damaged_model_is_refused_at_configure_until_it_is_mended(
    client, start_process, damaged_model
):
    process = start_process([*NODE, "-p", f"model:={damaged_model}"])
    process.wait_for("unconfigured")
    seen = 0
    for damage in (truncate, flip_a_bit, remove, leave_out_a_tensor, break_the_manifest):
        named = damage(damaged_model)
        assert not client.change_state(Transition.TRANSITION_CONFIGURE)
        output = process.output()
        assert "configure failed" in output[seen:]
        assert named in output[seen:], f"{damage.__name__}: the log names the file"
        assert client.state() == "unconfigured"
        seen = len(output)
        shutil.rmtree(damaged_model)
        shutil.copytree(find_model("warehouse_tiny").path, damaged_model)

    assert client.change_state(Transition.TRANSITION_CONFIGURE)
    assert client.state() == "inactive"
    assert client.change_state(Transition.TRANSITION_ACTIVATE)
    client.wait_until_active()
    assert client.ask_about(make_image(pattern())).status in FINAL


def test_every_cycle_of_transitions_serves_again_and_nothing_is_lost(client, start_process):
    # One question lasts until the node is deactivated, however late that is.
    process = start_process([sys.executable, *PROGRAM])
    process.wait_for("unconfigured")
    num_threads = psutil.Process(process.pid).num_threads
    threads = []
    assert not client.change_state(Transition.TRANSITION_ACTIVATE), "not configured yet"
    assert client.state() == "unconfigured", "a refused transition leaves the node alive"
    for _ in range(3):
        assert client.change_state(Transition.TRANSITION_CONFIGURE)
        assert client.change_state(Transition.TRANSITION_ACTIVATE)
        client.wait_until_active()
        assert client.ask_about(make_image(pattern())).status in FINAL
        ids = [client.send(ENDLESS if n == 10 else QUESTION) for n in range(30)]
        client.answer_to(ids[0])
        assert client.change_state(Transition.TRANSITION_DEACTIVATE)
        answers = [client.answer_to(query_id) for query_id in ids]
        statuses = {answer.status for answer in answers}
        assert statuses <= FINAL | {Answer.STATUS_CANCELED}
        assert Answer.STATUS_CANCELED in statuses
        assert client.change_state(Transition.TRANSITION_CLEANUP)
        # Threads that have been joined are still counted for a moment.
        threads.append(num_threads())
        client.wait(lambda: num_threads() <= threads[0], "cleanup releases the engine's threads")
    assert client.state() == "unconfigured"
    assert "Traceback" not in process.output()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_of_answers_ends_the_node_in_order(client, start_process, number):
    process = start_process([*NODE, "-p", "autostart:=true"])
    process.wait_for("active: cameras")
    client.wait_until_active()
    client.ask_about(make_image(pattern()))
    for _ in range(20):
        client.send("describe the scene.")
    process.signal_group(number)
    process.signal_group(number)  # `ros2 launch` sends it again

    assert process.wait() == 0
    assert "Traceback" not in process.output()


def test_an_interrupt_during_start_up_is_as_quiet(start_process):
    process = start_process([*NODE, "-p", "autostart:=true", "--log-level", "debug"])
    process.wait_for("Initializing")  # the middleware is up, the model not yet loaded
    process.signal_group(signal.SIGINT)

    assert process.wait() == 0
    assert "Traceback" not in process.output()


@pytest.mark.parametrize(
    ("parameter", "reason"),
    [
        ("model:=/no/such/model", "/no/such/model"),
        ("keep_ratio:=2.0", "keep_ratio"),
        ("engine:=abacus", "abacus"),
        ("method:=telepathy", "telepathy"),
        ("transport:=pigeon", "pigeon"),
        ("cameras:=[a, b]", "cameras names 2"),
        ("queue_size:=many", "queue_size"),
    ],
)
def test_a_node_that_cannot_start_says_why_and_exits(start_process, parameter, reason):
    process = start_process([*NODE, "-p", "autostart:=true", "-p", parameter])

    assert process.wait() == 1
    assert reason in process.output()
    assert "Traceback" not in process.output()


def test_without_the_core_library_it_names_the_interpreter(start_process, tmp_path):
    """As when the workspace was built with a Python that does not hold the core."""
    (tmp_path / "edge_atp.py").write_text("raise ModuleNotFoundError(name='edge_atp')\n")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r});"
        "from edge_atp_ros.vlm_node import main; sys.exit(main())"
    )
    process = start_process([sys.executable, "-c", program])

    assert process.wait() == 1
    assert f"edge_atp is not installed for {sys.executable}" in process.output()
    assert "Traceback" not in process.output()


def test_a_killed_node_comes_back_to_active(client, tmp_path, monkeypatch):
    # A node on a far too busy machine may take its time to end; it must not be killed for that.
    monkeypatch.setattr(runner_module, "_ESCALATION", ((signal.SIGINT, 120.0), (signal.SIGKILL, 5)))
    arguments = WarehouseArguments(bag=NO_BAG, planner=False)
    with Runner(warehouse(arguments, SHARE), tmp_path) as runner:
        client.wait_until_active()
        assert client.ask_about(make_image(pattern())).status in FINAL
        killed = runner.pid("vlm_node")
        os.kill(killed, signal.SIGKILL)
        client.wait(lambda: runner.restarts("vlm_node") == 1, "restart")
        client.wait(lambda: runner.log("vlm_node").count("active: cameras") == 2, "active again")
        assert runner.pid("vlm_node") != killed
        # A new client: the old one still counts the dead node's subscriptions for a while.
        with VlmClient() as newcomer:
            newcomer.wait_until_active()
            assert newcomer.ask_about(make_image(pattern())).status in FINAL
        assert runner.stop() == {"vlm_node": 0}
