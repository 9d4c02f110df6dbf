"""Building engines against a recording stand-in of each TensorRT version's bindings."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from fake_tensorrt import VERSIONS, FakeCuda, FakeTensorRT
from onnx import TensorProto
from tiny_checkpoints import PROMPT

from edge_atp.errors import ArtifactError, BackendUnavailableError, OutOfMemoryError
from edge_atp.runtime.model_dir import ModelDirectory
from export import recipe
from export.settings import ExportSettings
from export.tensorrt.__main__ import main
from export.tensorrt.recipe import build_engines
from export.tensorrt.support import PARSERS, Finding, lint, topk_fits


@pytest.fixture(scope="module")
def exported(
    checkpoint: Path, text_tower: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The same model in each dialect and one half-precision export; read-only."""
    result = {}
    for name, changes in {
        "ort-gqa": {"dialect": "ort-gqa"},
        "prim17": {"dialect": "prim17"},
        "prim18": {"dialect": "prim18"},
        "std24": {"dialect": "std24"},
        "fp16": {"dialect": "prim18", "precision": "fp16"},
        "int8": {"dialect": "prim17", "precision": "int8"},
        "int4": {"dialect": "std24", "precision": "int4-weights"},
    }.items():
        settings = ExportSettings(
            checkpoint,
            text_tower=str(text_tower),
            prompt=PROMPT,
            max_text_tokens=64,
            max_kv=96,
            parity_new_tokens=2,
            **changes,
        )
        out = tmp_path_factory.mktemp(name) / "model"
        with pytest.MonkeyPatch.context() as patch:
            # Gates have tests of their own; these random weights flip tokens in 16 bits.
            patch.setattr(recipe, "run_gates", lambda *args: {"gates": {}})
            recipe.export_model(settings, out, progress=lambda step: None)
        result[name] = out
    return result


def build(folder: Path, trt: FakeTensorRT, cuda: FakeCuda, workspace: int = 1 << 20):
    return build_engines(
        ModelDirectory.open(folder),
        workspace_bytes=workspace,
        optimization_level=4,
        log=lambda line: None,
        trt=trt,
        cuda=cuda,
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_flags_follow_what_the_version_has(
    exported: dict[str, Path], tmp_path: Path, version: str
) -> None:
    folder = shutil.copytree(exported["fp16"], tmp_path / "model")
    trt = FakeTensorRT(version, FakeCuda())
    built = build(folder, trt, trt.cuda)
    flags = {call[1] for call in trt.calls if call[0] == "create_network"}
    assert flags == {{"8.6.1": 1, "10.3.0": 3, "10.13.0": 3, "10.16.1": 3, "11.4.0": 2}[version]}
    # Precision flags only where the network cannot be typed by the file itself.
    assert (("set_flag", "fp16") in trt.calls) == (version == "8.6.1")
    builds = [call[1:] for call in trt.calls if call[0] == "build"]
    assert sorted(builds) == [
        ("decoder.onnx", 2),
        ("project.onnx", 1),
        ("text.onnx", 1),
        ("vision.onnx", 1),
    ]
    assert ("set_memory_pool_limit", "workspace", 1 << 20) in trt.calls
    assert {e.tensorrt_version for e in built.manifest.engines} == {version}
    assert {e.compute_capability for e in built.manifest.engines} == {"8.7"}


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0"])
def test_int8_is_asked_for_where_the_file_does_not_decide(
    exported: dict[str, Path], tmp_path: Path, version: str
) -> None:
    folder = shutil.copytree(exported["int8"], tmp_path / "model")
    trt = FakeTensorRT(version, FakeCuda())
    build(folder, trt, trt.cuda)
    flags = {call[1] for call in trt.calls if call[0] == "set_flag"}
    assert flags == ({"int8"} if version == "8.6.1" else set())


def test_timing_cache_is_kept_between_builds(exported: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(exported["prim18"], tmp_path / "model")
    trt = FakeTensorRT("10.3.0", FakeCuda())
    build(folder, trt, trt.cuda)
    contents = [call[1] for call in trt.calls if call[0] == "create_timing_cache"]
    assert contents == [b"", b"timings", b"timings", b"timings"]


def test_decoder_profiles_cover_decode_and_prefill(
    exported: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(exported["prim18"], tmp_path / "model")
    trt = FakeTensorRT("10.3.0", FakeCuda())
    built = build(folder, trt, trt.cuda)
    decoder = next(e for e in built.manifest.engines if e.role == "decoder")
    assert decoder.profiles["0"]["inputs_embeds"] == [[1, 1, 64]] * 3
    low, typical, high = decoder.profiles["1"]["inputs_embeds"]
    assert (low, high) == ([1, 1, 64], [1, 96, 64])
    assert typical == [1, 8 + 32, 64]
    assert decoder.profiles["1"]["past.0.key"][0] == [1, 2, 0, 16]


def test_too_little_memory_is_said_before_building(
    exported: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(exported["prim18"], tmp_path / "model")
    trt = FakeTensorRT("10.3.0", FakeCuda(free=1 << 20))
    with pytest.raises(OutOfMemoryError, match=r"needs about \d+ MB.*--workspace-mb"):
        build(folder, trt, trt.cuda, workspace=64 << 20)
    assert trt.calls == []


@pytest.mark.parametrize(
    ("refuse", "error", "message"),
    [
        ("parse", ArtifactError, r"cannot read .*vision.onnx: unsupported node number 0"),
        ("build", OutOfMemoryError, r"could not build vision.onnx.*--workspace-mb"),
    ],
)
def test_refusals_leave_the_directory_as_it_was(
    exported: dict[str, Path],
    tmp_path: Path,
    refuse: str,
    error: type[Exception],
    message: str,
) -> None:
    folder = shutil.copytree(exported["prim18"], tmp_path / "model")
    trt = FakeTensorRT("10.3.0", FakeCuda(), refuse=refuse)
    with pytest.raises(error, match=message):
        build(folder, trt, trt.cuda)
    assert ModelDirectory.open(folder).manifest.engines == ()


def test_a_dialect_that_tensorrt_cannot_read(exported: dict[str, Path]) -> None:
    trt = FakeTensorRT("10.3.0", FakeCuda())
    with pytest.raises(ArtifactError, match=r"'ort-gqa'.*--dialect prim18"):
        build(exported["ort-gqa"], trt, trt.cuda)


def test_without_tensorrt_it_says_where_to_run(exported: dict[str, Path]) -> None:
    try:
        import tensorrt  # noqa: F401

        pytest.skip("tensorrt is installed here")
    except ImportError:
        pass
    with pytest.raises(BackendUnavailableError, match="run this on the device"):
        build(exported["prim18"], None, FakeCuda())


GRAPHS = ("vision", "text", "project", "decoder", "select_atp")


@pytest.mark.parametrize(
    ("name", "read_by"),
    [
        ("prim17", ("8.6", "10.1", "10.15", "11.0", "11.5")),
        ("int8", ("8.6", "10.1", "10.15", "11.0", "11.5")),
        ("prim18", ("10.1", "10.15", "11.0", "11.5")),
        ("fp16", ("10.1", "10.15", "11.0", "11.5")),
        ("std24", ("10.15", "11.0", "11.5")),
        ("int4", ("10.15", "11.0", "11.5")),
        ("ort-gqa", ()),
    ],
)
def test_which_versions_read_a_dialect(
    exported: dict[str, Path], name: str, read_by: tuple[str, ...]
) -> None:
    found = {
        parser.name: [f for graph in GRAPHS for f in lint(exported[name] / f"{graph}.onnx", parser)]
        for parser in PARSERS
    }
    assert tuple(version for version, findings in found.items() if not findings) == read_by


def test_linter_says_why(exported: dict[str, Path]) -> None:
    old, new, newer, *_ = PARSERS
    # prim18 is refused by 8.6 for its opset alone.
    assert lint(exported["prim18"] / "decoder.onnx", old) == [
        Finding("", "opset 18 of the default domain; 17 at most")
    ]
    problems = {f.problem for f in lint(exported["std24"] / "decoder.onnx", new)}
    assert "operator TensorScatter is not in the support table" in problems
    problems = {f.problem for f in lint(exported["int4"] / "decoder.onnx", old)}
    assert "DequantizeLinear of INT4 is not supported" in problems
    problems = {f.problem for f in lint(exported["ort-gqa"] / "decoder.onnx", newer)}
    assert "operator com.microsoft.GroupQueryAttention is no standard operator" in problems


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "problem"),
    [
        ("TensorScatter", ["x", "y", "i"], {"axis": 2}, "axis of TensorScatter must be -2"),
        ("Attention", ["x", "x", "x", "", "y"], {}, "takes queries, keys, values and mask alone"),
        ("Attention", ["x", "x", "x"], {"softcap": 2.0}, "attribute softcap of Attention"),
        ("QuantizeLinear", ["x", "scale", "seven"], {}, "zero point of QuantizeLinear must be 0"),
        ("Unsqueeze", ["x", "y"], {}, "axes of Unsqueeze must be an initialiser"),
        ("TopK", ["x", "i"], {"sorted": 0}, "TopK must be sorted"),
    ],
)
def test_restrictions_of_the_newest_table(
    op: str, inputs: list[str], attributes: dict[str, object], problem: str, tmp_path: Path
) -> None:
    """Nodes alone; whether they make sense is not asked."""
    node = onnx.helper.make_node(op, inputs, ["out"], **attributes)
    seven = onnx.numpy_helper.from_array(np.array(7, np.int8), "seven")
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "one", [], [], [seven]),
        opset_imports=[onnx.helper.make_opsetid("", 24)],
    )
    onnx.save(model, str(tmp_path / "one.onnx"))
    (finding,) = lint(tmp_path / "one.onnx", PARSERS[-1])
    assert problem in finding.problem


@pytest.mark.parametrize(
    ("op", "shapes", "kind", "problem"),
    [
        ("Attention", [(1, 8, 64)] * 3, TensorProto.FLOAT, "queries of Attention must have 4"),
        ("TensorScatter", [(1, 2, 9, 4), (2, 1, 4)], TensorProto.FLOAT, "update of TensorScatter"),
        ("DequantizeLinear", [(4, 4), ()], TensorProto.UINT8, "DequantizeLinear of UINT8"),
    ],
)
def test_ranks_and_types_are_read_from_the_graph(
    op: str, shapes: list[tuple[int, ...]], kind: int, problem: str, tmp_path: Path
) -> None:
    inputs = [
        onnx.helper.make_tensor_value_info(f"in{i}", kind, shape) for i, shape in enumerate(shapes)
    ]
    node = onnx.helper.make_node(op, [value.name for value in inputs], ["out"])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "one", inputs, []),
        opset_imports=[onnx.helper.make_opsetid("", 24)],
    )
    onnx.save(model, str(tmp_path / "one.onnx"))
    (finding,) = lint(tmp_path / "one.onnx", PARSERS[-1])
    assert problem in finding.problem


def test_squeeze_without_axes_is_new_in_11_5(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4))
    node = onnx.helper.make_node("Squeeze", ["x"], ["out"])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "one", [value], []),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
    )
    onnx.save(model, str(tmp_path / "one.onnx"))
    found = {p.name: [f.problem for f in lint(tmp_path / "one.onnx", p)] for p in PARSERS}
    assert found.pop("11.5") == []
    assert set(map(tuple, found.values())) == {("Squeeze must name its axes",)}


@pytest.mark.parametrize("dialect", ["prim17", "prim18", "fp16"])
def test_shapes_and_types_of_standard_graphs_infer(exported: dict[str, Path], dialect: str) -> None:
    """Strict inference over the standard operators: what a parser of another engine relies on."""
    for graph in ("vision", "text", "project", "decoder", "select_atp"):
        onnx.checker.check_model(str(exported[dialect] / f"{graph}.onnx"), full_check=True)


def test_check_command(exported: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(exported["prim17"]), "--check"]) == 0
    assert main([str(exported["ort-gqa"]), "--check"]) == 1
    shown = capsys.readouterr().err
    assert "8.6" in shown
    assert "11.5" in shown


def test_topk_limit() -> None:
    assert topk_fits(2880)
    assert not topk_fits(3840)
