"""One graph as several ONNX Runtime sessions, each built for one range of input shapes.

ONNX Runtime's TensorRT provider parses and builds several profiles for one graph, but runs the
first alone: inputs that only another one covers fail
(github.com/microsoft/onnxruntime/pull/31624, open in August 2026). One profile over both prefill
and decode is tuned for one of them. So a decoder gets a session per profile; tensors on the device
are handed from one to the other as they are.

What it costs: an engine each, so the decoder's weights lie in the GPU's memory twice. Backend
``trt`` has both profiles in one engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from edge_atp.errors import InferenceError
from edge_atp.runtime.profiles import Profile, covers


class SessionPerProfile:
    """Picks the session for a run's inputs.

    Args:
        sessions: of the same graph, one per profile; a single one takes every shape.
        profiles: what each was built for, in the order of preference; empty for a single session.
    """

    def __init__(self, sessions: Sequence[Any], profiles: Sequence[Profile] = ()) -> None:
        self._sessions = tuple(sessions)
        self._profiles = tuple(profiles)

    @property
    def first(self) -> Any:
        """Any of them: inputs and outputs are the same."""
        return self._sessions[0]

    def covering(self, inputs: Mapping[str, NDArray[Any]]) -> Any:
        """The first session whose profile covers the shapes of ``inputs``; others may be left out.

        Raises:
            InferenceError: none does, or the sessions were closed.
        """
        if not self._sessions:
            raise InferenceError("the session was closed")
        if len(self._sessions) == 1:
            return self._sessions[0]
        for session, profile in zip(self._sessions, self._profiles, strict=True):
            if covers(profile, inputs):
                return session
        shapes = {name: array.shape for name, array in inputs.items()}
        raise InferenceError(
            f"no TensorRT profile covers {shapes}; export again with a larger --max-kv, or shorten"
            " the prompt"
        )
