"""A service with a thread of its own answers while the node's executor is busy."""

from __future__ import annotations

import threading
import time

import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

import rclpy
from edge_atp_ros.own_thread import OwnThread
from rclpy.context import Context
from std_srvs.srv import Empty
from waiting import PATIENCE_S, Spinner, wait_until


@pytest.fixture
def context():
    context = Context()
    rclpy.init(context=context)
    yield context
    rclpy.shutdown(context=context)


def responds(node, name: str) -> bool:
    """Whether a service answers; it is asked again, as it may not have matched the client yet."""
    client = node.create_client(Empty, name)
    wait_until(client.service_is_ready, f"service {name}")

    def response() -> bool:
        done = threading.Event()
        client.call_async(Empty.Request()).add_done_callback(lambda _future: done.set())
        return done.wait(5.0)

    return wait_until(response, f"an answer of {name}")


def test_it_answers_while_the_executor_is_held_up_and_in_its_own_thread(context):
    server, client = (rclpy.create_node(name, context=context) for name in ("server", "client"))
    threads: dict[str, str] = {}
    held_up, go_on = threading.Event(), threading.Event()

    def own(_request, response):
        threads["own"] = threading.current_thread().name
        return response

    def shared(_request, response):
        threads["shared"] = threading.current_thread().name
        held_up.set()
        go_on.wait()
        return response

    group = OwnThread(server, "own")
    server.create_service(Empty, "own", own, callback_group=group)
    server.create_service(Empty, "shared", shared)
    group.start()
    spinners = [Spinner(server), Spinner(client)]
    try:
        caller = client.create_client(Empty, "shared")
        wait_until(caller.service_is_ready, "service shared")
        caller.call_async(Empty.Request())
        assert held_up.wait(PATIENCE_S)

        assert all(responds(client, "own") for _ in range(3))
        assert threads["own"] == "own"
        assert threads["shared"] not in ("own", threading.current_thread().name)
    finally:
        go_on.set()
        group.stop()
        for spinner in spinners:
            spinner.stop()
    server.destroy_node()
    client.destroy_node()


def test_it_stops_at_once_with_nothing_to_do(context):
    node = rclpy.create_node("idle", context=context)
    before = set(threading.enumerate())
    for _ in range(3):
        group = OwnThread(node, "idle")
        group.start()
        time.sleep(0.01)
        group.stop()
    never_started = OwnThread(node, "never")
    never_started.stop()
    assert set(threading.enumerate()) <= before
    node.destroy_node()
