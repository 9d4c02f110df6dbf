"""A service with a thread of its own answers while the node's executor is busy."""

from __future__ import annotations

import threading
import time

import pytest

pytest.importorskip("edge_atp_msgs", reason="needs the built workspace: scripts/with_ros")

import rclpy
from edge_atp_ros.own_thread import OwnThread
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from std_srvs.srv import Empty


@pytest.fixture
def context():
    context = Context()
    rclpy.init(context=context)
    yield context
    rclpy.shutdown(context=context)


def spin(node, context) -> tuple[SingleThreadedExecutor, threading.Thread]:
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    return executor, thread


def call(node, name: str, timeout_s: float = 20.0) -> bool:
    """Whether a service answers."""
    client = node.create_client(Empty, name)
    assert client.wait_for_service(timeout_s)
    done = threading.Event()
    client.call_async(Empty.Request()).add_done_callback(lambda _future: done.set())
    try:
        return done.wait(timeout_s)
    finally:
        node.destroy_client(client)


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
        go_on.wait(20)
        return response

    group = OwnThread(server, "own")
    server.create_service(Empty, "own", own, callback_group=group)
    server.create_service(Empty, "shared", shared)
    group.start()
    running = [spin(server, context), spin(client, context)]
    waiting = threading.Thread(target=call, args=(client, "shared"))
    waiting.start()
    assert held_up.wait(20)

    assert all(call(client, "own") for _ in range(3))
    go_on.set()
    waiting.join(20)
    assert threads["own"] == "own"
    assert threads["shared"] not in ("own", threading.current_thread().name)

    group.stop()
    for executor, thread in running:
        executor.shutdown()
        thread.join(5)
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
