"""Choosing a backend, and what it makes of errors."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from edge_atp.errors import (
    BackendUnavailableError,
    ConfigError,
    InferenceError,
    OutOfMemoryError,
)
from edge_atp.runtime import sessions
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.sessions import ort as ort_backend
from edge_atp.runtime.threads import physical_cores


def test_unknown_backend_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"'cuda'.*auto, ort, trt, ort-cuda, ort-cpu"):
        sessions.choose("cuda")


def test_auto_says_what_it_chose_and_why_not_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    name, reason = sessions.choose("auto")
    assert name == "ort-cpu"
    assert "auto chose ort-cpu" in reason
    assert "no CUDAExecutionProvider" in reason


def test_auto_with_a_gpu_build_but_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu on a CPU-only machine lists the provider; placing a buffer fails."""
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: providers)
    name, reason = sessions.choose("auto")
    assert name == "ort-cpu"
    assert "no usable CUDA device" in reason


def test_a_module_stands_for_its_best_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    name, reason = sessions.choose("ort")
    assert name == "ort-cpu"
    assert "ort chose ort-cpu" in reason
    assert "trt" not in reason


def test_a_named_backend_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendUnavailableError, match="ort-cuda cannot run"):
        sessions.choose("ort-cuda")


def test_backend_failure_is_an_inference_error(engine: Engine) -> None:
    session = engine.open_graph("project")
    with pytest.raises(InferenceError, match="inference backend failed"):
        session.run({"patch_features": np.zeros((1, 2, 3), np.float32)})


def test_an_error_of_our_own_is_passed_on_as_it_is(engine: Engine) -> None:
    session = engine.open_graph("decoder")
    pixels = {"pixel_values": np.zeros((1, 3, 28, 28), np.float32)}
    state = session.allocate_state({}, (1,), np.float32)
    carry = session.allocate_carry({}, (1, 1, 1, 1), np.float32)
    session.close()
    for run in (
        lambda: session.run(pixels),
        lambda: session.run_in_place(pixels, state, ()),
        lambda: session.run_carrying(pixels, carry, ()),
    ):
        with pytest.raises(InferenceError) as caught:
            run()
        assert str(caught.value) == "the session was closed"


@pytest.mark.parametrize(
    "error",
    [MemoryError("x"), RuntimeError("Failed to allocate memory for requested buffer of size 9")],
)
def test_allocation_failure_is_out_of_memory(error: Exception) -> None:
    assert isinstance(ort_backend._inference_error(error), OutOfMemoryError)


def test_every_backend_is_probed() -> None:
    candidates = sessions.probe_all()
    assert {c.name for c in candidates} == set(sessions.available())
    assert all(c.reason for c in candidates)


def test_physical_cores_is_within_the_affinity() -> None:
    import os

    assert 1 <= physical_cores() <= len(os.sched_getaffinity(0))
