"""ONNX Runtime's device paths as far as a CPU shows them: what is bound, copied and replayed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort
import pytest
from tiny_checkpoints import PROMPT, llm_config, save_llava

from edge_atp.errors import BackendUnavailableError, InferenceError
from edge_atp.runtime import ort_fixed, ort_providers, sessions
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.graph_options import graph_options
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.runtime.ort_fixed import FixedSteps
from edge_atp.runtime.ort_profiles import SessionPerProfile
from edge_atp.runtime.profiles import Bounds
from edge_atp.runtime.sessions import ort as ort_backend
from edge_atp.runtime.sessions.base import SessionOptions
from export import recipe
from export.settings import ExportSettings

REAL_SESSION = ort.InferenceSession


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModelDirectory]:
    """The same float32 model in a dialect; read-only."""
    weights = save_llava(tmp_path_factory.mktemp("weights"), llm_config("llama"))
    made: dict[str, ModelDirectory] = {}

    def make(dialect: str) -> ModelDirectory:
        if dialect not in made:
            settings = ExportSettings(
                weights, prompt=PROMPT, max_text_tokens=64, max_kv=96, dialect=dialect,
                compare=False,
            )  # fmt: skip
            out = tmp_path_factory.mktemp(dialect) / "model"
            made[dialect] = recipe.export_model(settings, out, progress=lambda step: None)
        return made[dialect]

    return make


class Binding:
    """Passes everything on to a real IO binding and notes what goes where."""

    def __init__(self, real: Any, log: list[tuple[str, str, Any]]) -> None:
        self._real, self._log = real, log

    def __getattr__(self, method: str) -> Any:
        call = getattr(self._real, method)
        if not method.startswith("bind"):
            return call

        def recorded(*args: Any) -> Any:
            value = args[1] if len(args) > 1 else None
            pointer = getattr(value, "data_ptr", None)
            self._log.append((method, args[0], pointer() if pointer else value))
            return call(*args)

        return recorded


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Any]]:
    """(method, tensor, address or array or device) of every binding call."""
    log: list[tuple[str, str, Any]] = []
    original = ort.InferenceSession.io_binding
    monkeypatch.setattr(
        ort.InferenceSession, "io_binding", lambda self: Binding(original(self), log)
    )
    return log


def answer(engine: Engine, pixels: np.ndarray, tokens: int = 8) -> tuple[int, ...]:
    vision = engine.encode_image(pixels)
    prompt = engine.embed_prompt(
        "what is on the left?", [engine.project(vision.patch_features, np.arange(16))]
    )
    return engine.generate(prompt, max_new_tokens=tokens).token_ids


def is_cache(name: str) -> bool:
    return name.startswith(("past.", "present."))


@pytest.mark.parametrize("dialect", ["ort-gqa", "std24"])
def test_cache_stays_in_one_place_and_is_never_copied(
    directories: Callable[[str], ModelDirectory],
    bound: list[tuple[str, str, Any]],
    pixels: np.ndarray,
    dialect: str,
) -> None:
    engine = Engine.load(directories(dialect), "ort-cpu")
    bound.clear()
    first = answer(engine, pixels)
    cache = [(method, name, where) for method, name, where in bound if is_cache(name)]
    assert {method for method, _, _ in cache} == {"bind_ortvalue_input", "bind_ortvalue_output"}
    addresses = {name.replace("present", "past"): set() for _, name, _ in cache}
    for _, name, where in cache:
        addresses[name.replace("present", "past")].add(where)
    # Keys and values of three layers, one address each for input and output, and all different.
    assert len(addresses) == 6
    assert all(len(places) == 1 for places in addresses.values())
    assert len(set.union(*addresses.values())) == 6
    # What does cross is the new tokens and the logits.
    assert not any(is_cache(name) for method, name, _ in bound if method == "bind_cpu_input")
    assert {name for method, name, _ in bound if method == "bind_output"} == {"logits"}
    assert first == answer(engine, pixels)
    engine.close()


def test_growing_cache_is_handed_on_without_a_copy(
    directories: Callable[[str], ModelDirectory],
    bound: list[tuple[str, str, Any]],
    pixels: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The value one step puts out is, address and all, what the next takes in."""
    produced: list[dict[str, int]] = []
    original = ort_backend.OrtSession.run_carrying

    def run(self: Any, inputs: Any, carry: Any, outputs: Any) -> Any:
        result = original(self, inputs, carry, outputs)
        produced.append({name: value.data_ptr() for name, value in carry.values.items()})
        return result

    monkeypatch.setattr(ort_backend.OrtSession, "run_carrying", run)
    engine = Engine.load(directories("prim18"), "ort-cpu")
    bound.clear()
    produced.clear()
    tokens = answer(engine, pixels)
    taken = [(name, where) for method, name, where in bound if method == "bind_ortvalue_input"]
    steps = [dict(taken[i : i + 6]) for i in range(0, len(taken), 6)]
    assert len(steps) == len(produced) == len(tokens)
    assert steps[1:] == produced[:-1]
    assert tokens == answer(Engine.load(directories("ort-gqa"), "ort-cpu"), pixels)
    engine.close()


def test_replayed_steps_have_fixed_addresses_and_the_same_tokens(
    directories: Callable[[str], ModelDirectory],
    bound: list[tuple[str, str, Any]],
    pixels: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the CPU nothing is captured, but addresses, order and numbers are those of a GPU."""
    numbers: list[str] = []
    original = ort.RunOptions.add_run_config_entry

    class Options(ort.RunOptions):
        def add_run_config_entry(self, key: str, value: str) -> None:
            assert key == "gpu_graph_id"
            numbers.append(value)
            original(self, key, value)

    monkeypatch.setattr(ort_fixed.ort, "RunOptions", Options)
    plain = Engine.load(directories("std24"), "ort-cpu")
    expected = answer(plain, pixels, 12)
    plain.close()
    monkeypatch.setattr(ort_backend, "replays", lambda name, options: options.role == "decoder")
    engine = Engine.load(directories("std24"), "ort-cpu")
    bound.clear()
    assert answer(engine, pixels, 12) == expected
    # Prefill and the first two steps run freely; the other nine replay number 1.
    assert numbers == ["-1", "-1", "-1", "1"]
    replay = bound[-(4 + 12 + 1) :]
    assert {name for method, name, _ in replay if method == "bind_ortvalue_input"} >= {
        "inputs_embeds", "position_ids", "write_indices", "attention_bias"
    }  # fmt: skip
    assert [name for method, name, _ in replay if method == "bind_ortvalue_output"][-1] == "logits"
    # A second answer replays from its second step on, and mixes nothing up.
    assert answer(engine, -pixels, 12) == answer(plain_again(directories), -pixels, 12)
    assert answer(engine, pixels, 12) == expected
    engine.close()


def plain_again(directories: Callable[[str], ModelDirectory]) -> Engine:
    return Engine.load(directories("ort-gqa"), "ort-cpu")


def test_steps_that_alternate_are_not_captured() -> None:
    class Session:
        def io_binding(self) -> Any:
            raise AssertionError("bound")

    steps = FixedSteps(Session(), "cpu")
    ran: list[tuple[int, ...]] = []
    steps._run_once = lambda inputs, state, outputs: (  # type: ignore[method-assign]
        ran.append(inputs["x"].shape) or {"y": np.zeros(1, np.float32)}
    )
    state = object()
    for length in (5, 1, 5, 1, 5):
        steps.run({"x": np.zeros(length)}, state, ("y",))
    assert len(ran) == 5


def options_of(directory: ModelDirectory, role: str) -> SessionOptions:
    return graph_options(SessionOptions(), directory, directory.manifest.graph(role))


def test_tensorrt_provider_is_told_every_shape(
    directories: Callable[[str], ModelDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    directory = directories("prim18")
    opened = ort_providers.providers(
        "ort-trt", directory.file("decoder"), options_of(directory, "decoder")
    )
    shapes = []
    for (name, options), rest in opened:
        assert (name, rest) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
        shapes.append(
            [
                dict(part.split(":") for part in options[f"trt_profile_{w}_shapes"].split(","))
                for w in ("min", "opt", "max")
            ]
        )
        assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "1"
        assert (options["trt_fp16_enable"], options["trt_int8_enable"]) == ("0", "0")
    inputs = {tensor.name for tensor in directory.manifest.graph("decoder").inputs}
    assert all(set(bounds) == inputs for profile in shapes for bounds in profile)
    (low, typical, high), (least, prompt, most) = shapes
    # Decode: one token behind a filled cache.
    for bounds in (low, typical, high):
        assert bounds["inputs_embeds"] == "1x1x64"
    assert (low["past.0.key"], high["past.0.key"]) == ("1x2x1x16", "1x2x95x16")
    assert (low["attention_bias"], high["attention_bias"]) == ("1x1x1x2", "1x1x1x96")
    # Prefill: up to max_kv tokens, tuned for the kept tokens and a question.
    assert (least["inputs_embeds"], most["inputs_embeds"]) == ("1x1x64", "1x96x64")
    assert int(prompt["inputs_embeds"].split("x")[1]) > 16
    assert (least["past.0.key"], prompt["past.0.key"]) == ("1x2x0x16", "1x2x0x16")
    # ONNX Runtime names an engine after its graph, so each profile's lies in a folder of its own.
    folders = [Path(options["trt_engine_cache_path"]) for ((_, options), _) in opened]
    assert len(set(folders)) == 2
    assert all(folder.is_dir() and folder.is_relative_to(tmp_path) for folder in folders)
    (timing,) = {options["trt_timing_cache_path"] for ((_, options), _) in opened}
    assert directory.sha256("decoder").startswith(Path(timing).name)
    vision = options_of(directory, "vision")
    assert len(ort_providers.providers("ort-trt", directory.file("vision"), vision)) == 1


class AsTensorRt:
    """A CPU session that calls itself a TensorRT one and counts its runs."""

    opened: ClassVar[list[AsTensorRt]] = []

    def __init__(self, path: str, settings: Any, providers: Any) -> None:
        self._real = REAL_SESSION(path, settings, providers=["CPUExecutionProvider"])
        self.options = providers[0][1]
        self.lengths: list[int] = []
        self.opened.append(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get_providers(self) -> list[str]:
        return ["TensorrtExecutionProvider"]

    def io_binding(self) -> Any:
        return Noting(self._real.io_binding(), self.lengths)

    def run_with_iobinding(self, binding: Any) -> None:
        self._real.run_with_iobinding(binding.real)


class Noting:
    """A binding that notes how many tokens it is given."""

    def __init__(self, real: Any, lengths: list[int]) -> None:
        self.real, self._lengths = real, lengths

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def bind_cpu_input(self, name: str, array: np.ndarray) -> None:
        if name == "inputs_embeds":
            self._lengths.append(array.shape[1])
        self.real.bind_cpu_input(name, array)


@pytest.mark.parametrize("dialect", ["prim18", "std24"])
def test_prefill_and_decode_run_in_sessions_of_their_own(
    directories: Callable[[str], ModelDirectory],
    pixels: np.ndarray,
    dialect: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what one leaves in the cache the other reads: the tokens are those of one session."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plain = Engine.load(directories(dialect), "ort-cpu")
    expected = answer(plain, pixels)
    monkeypatch.setattr(AsTensorRt, "opened", [])
    monkeypatch.setattr(ort, "InferenceSession", AsTensorRt)
    monkeypatch.setattr(ort_backend, "device_of", lambda name: "cpu")
    monkeypatch.setattr(sessions, "choose", lambda name, **_: (name, "requested"))
    engine = Engine.load(directories(dialect), "ort-trt")
    assert answer(engine, pixels) == expected
    decode, prefill = (
        session
        for session in AsTensorRt.opened
        if "inputs_embeds" in session.options["trt_profile_min_shapes"]
    )
    assert set(decode.lengths) == {1}
    assert len(decode.lengths) == len(expected) - 1
    assert len(prefill.lengths) == 1
    assert prefill.lengths[0] > 16
    engine.close()
    plain.close()


def test_a_prompt_that_no_profile_covers() -> None:
    bounds = {"x": Bounds((1, 1), (1, 1), (1, 4))}
    pair = SessionPerProfile(["short", "long"], [bounds, {"x": Bounds((1, 5), (1, 8), (1, 8))}])
    assert pair.covering({"x": np.zeros((1, 4))}) == "short"
    assert pair.covering({"x": np.zeros((1, 5))}) == "long"
    with pytest.raises(InferenceError, match=r"\(1, 9\).*--max-kv"):
        pair.covering({"x": np.zeros((1, 9))})
    with pytest.raises(InferenceError, match="closed"):
        SessionPerProfile(()).covering({})


def test_tensorrt_provider_refuses_other_operators(
    directories: Callable[[str], ModelDirectory],
) -> None:
    directory = directories("ort-gqa")
    with pytest.raises(BackendUnavailableError, match=r"'ort-gqa'.*--dialect prim18"):
        ort_providers.providers(
            "ort-trt", directory.file("vision"), options_of(directory, "vision")
        )


def test_replay_needs_a_static_cache(directories: Callable[[str], ModelDirectory]) -> None:
    for dialect in ("ort-gqa", "prim18"):
        directory = directories(dialect)
        with pytest.raises(BackendUnavailableError, match=r"cannot be replayed.*std24"):
            ort_providers.providers(
                "ort-cuda-graph", directory.file("decoder"), options_of(directory, "decoder")
            )
    directory = directories("std24")
    path, vision = directory.file("vision"), options_of(directory, "vision")
    assert ort_providers.providers("ort-cuda-graph", path, vision) == [["CUDAExecutionProvider"]]
    (((_, options),),) = ort_providers.providers(
        "ort-cuda-graph", path, options_of(directory, "decoder")
    )
    assert options == {"enable_cuda_graph": "1"}


def test_auto_never_takes_what_builds_for_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ort, "get_available_providers", lambda: list(ort_providers.PROVIDERS.values())
    )
    monkeypatch.setattr(ort_providers, "_cuda_problem", lambda: None)
    monkeypatch.setattr(ort_providers, "_tensorrt_problem", lambda: None)
    assert sessions.probe("ort-trt").available
    assert sessions.choose("auto")[0] == "ort-cuda"
    assert sessions.choose("ort")[0] == "ort-cuda"
    assert sessions.choose("ort-trt") == ("ort-trt", "requested")


def test_provider_without_its_library_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ort, "get_available_providers", lambda: list(ort_providers.PROVIDERS.values())
    )
    monkeypatch.setattr(ort_providers, "_cuda_problem", lambda: None)
    monkeypatch.setattr(ort_providers, "_TENSORRT_LIBRARIES", ("libno_such_thing.so.10",))
    with pytest.raises(BackendUnavailableError, match=r"ort-trt cannot run: TensorRT is not inst"):
        sessions.choose("ort-trt")


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (
            "/onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2465"
            " onnxruntime::ProviderInfo_CUDA& onnxruntime::GetProviderInfo_CUDA() CUDA Provider not"
            " available, can't get interface for it",
            "CUDA Provider not available, can't get interface for it",
        ),
        ("plain message\nsecond line", "plain message"),
    ],
)
def test_messages_without_places_in_the_source(raw: str, shown: str) -> None:
    assert ort_providers.first_line(RuntimeError(raw)) == shown
