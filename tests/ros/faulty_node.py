"""The VLM node with an engine that fails when a question asks for it; run as a program.

    python faulty_node.py --ros-args -p autostart:=true ...

A question whose text contains one of the keys of FAULTS meets that fault: at its first graph run,
inside the real backend's call (so everything above it is the node's own code), at every graph
run, or in preprocessing.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from typing import Any


def ort_allocation_failure() -> None:
    """What ONNX Runtime raises when its arena cannot grow (text from a real run)."""
    from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

    raise RuntimeException(
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running"
        " MatMul node. Name:'/layers.0/attn/MatMul' Status Message: bfc_arena.cc:376 void*"
        " onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*)"
        " Failed to allocate memory for requested buffer of size 8589934592"
    )


def memory_error() -> None:
    raise MemoryError("Unable to allocate 8.00 GiB for an array with shape (2147483648,)")


def backend_failure() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def programming_error() -> None:
    """Outside the backend, whose errors it would turn into its own."""
    raise ZeroDivisionError("division by zero")


def block() -> None:
    """A native call that never returns; other Python threads run on."""
    ctypes.CDLL(None).sleep(100_000)


def hold() -> None:
    """Begin to answer, then make no progress until nobody wants the answer any more."""
    _served["runs"] += 1
    end_s = time.monotonic() + 60.0
    while _served["runs"] > RUNS_BEFORE_HOLDING and time.monotonic() < end_s:
        if _served["unwanted"]():
            return
        time.sleep(0.01)


FIRST_RUN, EVERY_RUN, PREPROCESS = "first run", "every run", "preprocess"
FAULTS: dict[str, tuple[Callable[[], None], str]] = {
    "fault: ort out of memory": (ort_allocation_failure, FIRST_RUN),
    "fault: memory error": (memory_error, FIRST_RUN),
    "fault: backend": (backend_failure, FIRST_RUN),
    "fault: blocks": (block, FIRST_RUN),
    "endlessly": (hold, EVERY_RUN),
    "fault: programming": (programming_error, PREPROCESS),
}
ENDLESS = "describe the scene endlessly."
# Vision, text, projection and prefill; the first tokens are out by then.
RUNS_BEFORE_HOLDING = 6
PROGRAM = (__file__,)
_armed: list[tuple[Callable[[], None], str]] = []
_served: dict[str, Any] = {}


def arm(text: str) -> None:
    _armed[:] = [fault for name, fault in FAULTS.items() if name in text]


def strike(*places: str) -> None:
    for fault, place in list(_armed):
        if place in places:
            if place != EVERY_RUN:
                _armed.remove((fault, place))
            fault()


def before(places: tuple[str, ...], call: Callable[..., Any]) -> Callable[..., Any]:
    def striking(*args: Any, **kwargs: Any) -> Any:
        strike(*places)
        return call(*args, **kwargs)

    return striking


def inject() -> None:
    """Patch the backend's session, preprocessing and the node's answering."""
    import onnxruntime
    from edge_atp_ros.answering import Answerer

    from edge_atp.preprocess import Preprocessor

    session = onnxruntime.InferenceSession
    for name in ("run", "run_with_iobinding"):
        setattr(session, name, before((FIRST_RUN, EVERY_RUN), getattr(session, name)))
    Preprocessor.__call__ = before((PREPROCESS,), Preprocessor.__call__)
    serve = Answerer.serve

    def serve_armed(self: Answerer, question: Any, stopping: Callable[[], bool]) -> Any:
        arm(question.query.text)
        _served.update(runs=0, unwanted=lambda: stopping() or question.unwanted())
        try:
            return serve(self, question, stopping)
        finally:
            _armed.clear()

    Answerer.serve = serve_armed


def load() -> type:
    inject()
    from edge_atp_ros.vlm import VlmNode

    return VlmNode


if __name__ == "__main__":
    from edge_atp_ros.process import run_node

    sys.exit(run_node(load))
