"""Which export of a shipped model is run where, and what is said about it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from edge_atp.errors import ArtifactError, BackendUnavailableError, ConfigError
from edge_atp.runtime import find_model as module
from edge_atp.runtime import sessions
from edge_atp.runtime.engine import Engine
from edge_atp.runtime.find_model import find_model, shipped_models
from edge_atp.runtime.loading import load_engine
from edge_atp.runtime.manifest import FILE_NAME, read_manifest
from edge_atp.runtime.model_dir import ModelDirectory
from edge_atp.runtime.sessions.base import Candidate

INT8, FP32 = (shipped_models()["warehouse_tiny"][variant].path for variant in ("int8", "fp32"))


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch):
    """A machine on which just these backends can run."""

    def only(*usable: str) -> None:
        monkeypatch.setattr(
            sessions, "probe", lambda name: Candidate(name, name in usable, f"{name} as told")
        )

    return only


def fake_model(folder: Path, **changes: object) -> None:
    """A manifest with other values; nothing else of the directory is read."""
    manifest = json.loads((FP32 / FILE_NAME).read_text())
    folder.mkdir(parents=True)
    (folder / FILE_NAME).write_text(json.dumps(manifest | changes))


def test_both_exports_are_of_the_same_weights() -> None:
    int8, fp32 = (read_manifest(path / FILE_NAME) for path in (INT8, FP32))
    assert int8.source == fp32.source
    assert int8.selection == fp32.selection
    assert (int8.precision.compute, fp32.precision.compute) == ("int8", "fp32")
    assert int8.precision.backends == ("ort-cpu",)
    assert fp32.precision.backends == ()


@pytest.mark.parametrize(
    ("usable", "asked", "path"),
    [
        (("ort-cpu",), "auto", INT8),
        (("ort-cpu",), "ort", INT8),
        (("ort-cpu", "ort-cuda"), "ort-cpu", INT8),
        (("ort-cpu", "ort-cuda"), "auto", FP32),
        (("ort-cpu", "ort-cuda"), "ort", FP32),
        (("ort-cpu", "ort-cuda"), "ort-cuda", FP32),
        (("ort-cpu", "ort-trt"), "ort-trt", FP32),
        # auto passes over ort-trt, and over trt where the directory has no engines.
        (("ort-cpu", "ort-trt", "trt"), "auto", INT8),
        (("ort-cpu", "trt"), "trt", FP32),
    ],
)
def test_the_name_stands_for_what_the_backend_runs_best(
    backends, usable: tuple[str, ...], asked: str, path: Path
) -> None:
    backends(*usable)
    found = find_model("warehouse_tiny", asked)
    assert found.path == path
    variant, other = ("int8", "fp32") if path == INT8 else ("fp32", "int8")
    assert found.reason.startswith(f"warehouse_tiny is warehouse_tiny:{variant} on ")
    assert found.reason.endswith(f"there is warehouse_tiny:{other}")


def test_a_variant_and_a_path_are_taken_as_they_are(backends) -> None:
    backends("ort-cpu", "ort-cuda")
    for named in ("warehouse_tiny:int8", str(INT8)):
        assert (find_model(named).path, find_model(named).reason) == (INT8, "")
    assert find_model("warehouse_tiny:fp32", "ort-cpu").path == FP32


@pytest.mark.parametrize(
    "named",
    ["warehouse_tiny:int4", "nonsense", "nonsense:int8", ":", ".", "../models/warehouse_tiny"],
)
def test_what_is_not_there_is_answered_with_what_is(named: str) -> None:
    with pytest.raises(ArtifactError, match=r"warehouse_tiny:int8, warehouse_tiny:fp32"):
        find_model(named)


def test_a_backend_that_cannot_run_says_why(backends) -> None:
    backends("ort-cpu")
    with pytest.raises(BackendUnavailableError, match="ort-cuda as told"):
        find_model("warehouse_tiny", "ort-cuda")
    with pytest.raises(ConfigError, match="unknown backend 'tpu'"):
        find_model("warehouse_tiny", "tpu")


@pytest.mark.parametrize("backend", ["ort-cuda", "ort-cuda-graph", "ort-trt", "trt"])
def test_int8_operators_of_the_cpu_are_refused_elsewhere(backends, backend: str) -> None:
    """ONNX Runtime would run them on the CPU all the same, with a copy for every one."""
    backends("ort-cpu", backend)
    with pytest.raises(BackendUnavailableError, match=r"only ort-cpu has; take a float.*:fp32"):
        Engine.load(ModelDirectory.open(INT8, verify=False), backend)


def test_auto_takes_the_cpu_for_a_directory_that_only_it_can_run(backends) -> None:
    backends("ort-cpu", "ort-cuda")
    name, reason = sessions.choose_for(read_manifest(INT8 / FILE_NAME), "auto")
    assert name == "ort-cpu"
    assert "not ort-cuda: the model directory holds int8 operators that only ort-cpu has" in reason


def test_the_engine_says_which_export_it_runs() -> None:
    engine = load_engine("warehouse_tiny", "ort-cpu", num_threads=1)
    assert engine.directory.path == INT8
    assert "requested; warehouse_tiny is warehouse_tiny:int8 on ort-cpu (" in engine.backend_reason
    engine.close()


def test_engines_built_for_one_export_decide_for_it(
    backends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = {
        "role": "vision", "file": "e", "tensorrt_version": "10.3", "compute_capability": "8.7",
        "onnx_sha256": "",
    }  # fmt: skip
    fake_model(tmp_path / "m" / "a")
    fake_model(tmp_path / "m" / "b", engines=[engine])
    listed = {v: {"path": f"m/{v}", "reason": "r"} for v in ("a", "b", "absent")}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump({"directories": listed}))
    (tmp_path / "other.yaml").write_text("name: no exports\n")
    monkeypatch.setattr(module, "_SHIPPED", tmp_path)
    assert {n: list(found) for n, found in shipped_models().items()} == {"m": ["a", "b"]}
    backends("ort-cpu", "ort-cuda", "trt")
    assert find_model("m").path == tmp_path / "m" / "b"
    assert find_model("m", "ort-cuda").path == tmp_path / "m" / "a"


@pytest.mark.parametrize(
    "content", ["directories: [a]\n", "directories: {a: {path: x}}\n", "- 1\n"]
)
def test_a_malformed_list_names_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    (tmp_path / "m.yaml").write_text(content)
    monkeypatch.setattr(module, "_SHIPPED", tmp_path)
    with pytest.raises(ConfigError, match=r"m\.yaml: directories must be"):
        find_model("m")


def test_old_manifests_say_nothing_of_backends(tmp_path: Path) -> None:
    copy = shutil.copytree(FP32, tmp_path / "model")
    content = json.loads((copy / FILE_NAME).read_text())
    content["precision"].pop("backends", None)
    (copy / FILE_NAME).write_text(json.dumps(content))
    assert ModelDirectory.open(copy).manifest.precision.backends == ()
