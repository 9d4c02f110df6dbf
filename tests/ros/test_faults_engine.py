"""An engine that fails: each question is answered, and the next one is right again."""

from __future__ import annotations

import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

from edge_atp_msgs.msg import Answer
from faulty_node import PROGRAM
from vlm_client import assert_answers, make_image, pattern, start_vlm_node


@pytest.fixture(scope="module")
def node(start_module_process):
    return start_vlm_node(start_module_process, program=PROGRAM)


@pytest.mark.parametrize(
    ("fault", "code", "reason"),
    [
        ("fault: ort out of memory", Answer.ERROR_OUT_OF_MEMORY, "Failed to allocate memory"),
        ("fault: memory error", Answer.ERROR_OUT_OF_MEMORY, "8.00 GiB"),
        ("fault: backend", Answer.ERROR_BACKEND, "illegal memory access"),
        ("fault: programming", Answer.ERROR_BACKEND, "ZeroDivisionError"),
    ],
)
def test_a_failing_engine_is_answered_and_the_next_question_is_right(
    client, node, fault, code, reason
):
    good = make_image(pattern())
    before = client.ask_about(good)
    broken = client.ask_about(make_image(pattern(seed=code)), fault)

    assert (broken.status, broken.error_code) == (Answer.STATUS_ERROR, code)
    assert reason in broken.error_msg
    again = make_image(pattern())
    after = client.ask_about(again)
    assert_answers(client, after, again)
    assert after.text == before.text
    assert node.is_running()


def test_diagnostics_tell_of_failures_latencies_and_memory(client):
    client.ask_about(make_image(pattern(seed=9)), "fault: backend")
    client.wait(
        lambda: "failed" in client.diagnostic("/vlm_node", "message"), "the failure is reported"
    )
    assert int(client.diagnostic("/vlm_node", "errors_backend")) >= 1
    assert client.diagnostic("/vlm_node", "backend").startswith("ort")
    latency = client.diagnostics["/vlm_node: latency"]
    assert 0 < float(latency["total_p50_ms"]) <= float(latency["total_p95_ms"])
    assert float(latency["total_p95_ms"]) <= float(latency["total_p99_ms"])
    assert float(client.diagnostics["/vlm_node: host"]["resident_mb"]) > 10
