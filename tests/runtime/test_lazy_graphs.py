"""Graphs that few questions need are opened once, whoever asks for them first."""

import threading
import time
from types import SimpleNamespace

import pytest

from edge_atp.errors import ArtifactError
from edge_atp.runtime.lazy_graphs import LazyGraphs


class Directory:
    """Opens graphs; notes which, and the threads that were in ``open_graph`` at the same time."""

    def __init__(self):
        self.opened = []
        self.closed = []
        self.missing = set()
        self.inside = 0
        self.most_inside = 0

    def open_graph(self, role):
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        time.sleep(0.01)  # long enough for another thread to come in, if it could
        try:
            if role in self.missing:
                raise ArtifactError(f"{role}.onnx is missing")
            self.opened.append(role)
            return SimpleNamespace(role=role, close=lambda: self.closed.append(role))
        finally:
            self.inside -= 1


def test_threads_that_come_together_open_it_once():
    directory, waiting = Directory(), threading.Barrier(8)
    graphs, got = LazyGraphs(directory.open_graph), []

    def come(number):
        role = "ab"[number % 2]
        waiting.wait(60)
        if number < 4:
            graphs.open(role)
        got.append(graphs.get(role))

    threads = [threading.Thread(target=come, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(directory.opened) == ["a", "b"]
    assert directory.most_inside == 1
    assert len(got) == 8
    assert len({id(session) for session in got}) == 2


def test_it_says_whether_there_was_something_to_open():
    directory = Directory()
    graphs = LazyGraphs(directory.open_graph)
    assert graphs.open("a")
    assert not graphs.open("a")
    assert graphs.get("a") is graphs.get("a")
    assert directory.opened == ["a"]


def test_what_cannot_be_opened_is_an_error_each_time_until_it_can():
    directory = Directory()
    directory.missing.add("a")
    graphs = LazyGraphs(directory.open_graph)
    for ask in (graphs.open, graphs.get, graphs.open):
        with pytest.raises(ArtifactError, match=r"a\.onnx is missing"):
            ask("a")
    directory.missing.clear()
    assert graphs.get("a").role == "a"


def test_closed_graphs_are_opened_again_when_asked_for():
    directory = Directory()
    graphs = LazyGraphs(directory.open_graph)
    graphs.get("a")
    graphs.get("b")
    graphs.close()
    assert directory.closed == ["a", "b"]
    graphs.close()
    assert directory.closed == ["a", "b"]
    graphs.get("a")
    assert directory.opened == ["a", "b", "a"]
