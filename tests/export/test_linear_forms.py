"""Quantised linear layers: what is stored, and what ONNX Runtime makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from edge_atp.errors import ArtifactError, ConfigError
from export.graph import GraphBuilder
from export.linear_forms import (
    LinearForm,
    block_linear,
    dynamic_int8_linear,
    float_linear,
    half_linear,
    int4_blocks,
    int8_per_channel,
    pack_blocks,
    qdq_block_linear,
    qdq_linear,
    smoothing,
)
from export.precision import get_precision

RNG = np.random.default_rng(0)


def run(
    form: LinearForm, weight: np.ndarray, bias: np.ndarray | None, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    graph = GraphBuilder("linear", opset=24, linear_form=form)
    x = graph.input("x", TensorProto.FLOAT, [1, "S", weight.shape[0]])
    graph.output("y", graph.linear(x, "layer", weight, bias), TensorProto.FLOAT, [1, "S", None])
    graph.save(folder / "linear.onnx")
    session = ort.InferenceSession(str(folder / "linear.onnx"))
    rows = np.random.default_rng(1).normal(size=(1, 5, weight.shape[0])).astype(np.float32)
    return np.asarray(session.run(None, {"x": rows})[0]), rows


@pytest.mark.parametrize(
    ("form", "tolerance"),
    [
        (float_linear, 1e-6),
        (half_linear, 2e-3),
        (dynamic_int8_linear, 0.02),
        (block_linear(8), 0.01),
        (block_linear(4), 0.12),
        (None, 0.03),
        (qdq_block_linear(16), 0.12),
    ],
)
@pytest.mark.parametrize("inputs", [64, 80])
@pytest.mark.parametrize("with_bias", [True, False])
def test_form_is_close_to_float(
    form: LinearForm | None, tolerance: float, inputs: int, with_bias: bool, tmp_path: Path
) -> None:
    """Also where the input width is no multiple of the block size; None is calibrated Q/DQ."""
    form = form or qdq_linear({"layer": np.full(inputs, 4.0, np.float32)})
    weight = RNG.normal(size=(inputs, 24)).astype(np.float16)
    bias = RNG.normal(size=24).astype(np.float16) if with_bias else None
    y, rows = run(form, weight, bias, tmp_path)
    exact = rows @ weight.astype(np.float32) + (0 if bias is None else bias.astype(np.float32))
    assert np.linalg.norm(y - exact) / np.linalg.norm(exact) < tolerance
    assert np.abs(y - exact).max() > 0 or form is float_linear


def test_int8_keeps_the_peak_of_each_channel() -> None:
    weight = np.array([[1.0, 0.0, -5.0], [-2.0, 0.0, 2.5]], np.float32)
    codes, scale = int8_per_channel(weight)
    np.testing.assert_array_equal(codes, [[64, 0, -127], [-127, 0, 64]])
    np.testing.assert_allclose(scale, [2 / 127, 1.0, 5 / 127])


@pytest.mark.parametrize("sign", [1, -1])
def test_no_pair_of_dynamic_int8_products_leaves_sixteen_bits(sign: int, tmp_path: Path) -> None:
    """x86 without VNNI adds u8 * s8 products two by two in int16: the worst of them must fit, or
    that processor computes something else (0.41 of the result with 8-bit weights on emulated AVX2).
    """
    weight = np.full((64, 8), sign * 0.3, np.float32)
    weight[5] = 0.1
    run(dynamic_int8_linear, weight, None, tmp_path)
    graph = onnx.load(str(tmp_path / "linear.onnx")).graph
    codes = next(
        onnx.numpy_helper.to_array(i) for i in graph.initializer if i.name.endswith("weight_int8")
    )
    assert np.abs(codes).max() == 64
    assert 2 * 255 * int(np.abs(codes.astype(int)).max()) < 2**15


def test_four_bit_codes_by_hand() -> None:
    """One block of four inputs: the peak -8 sets scale 1, codes are value + 8, low half first."""
    codes, scales = pack_blocks(np.array([[-8.0], [7.0], [0.0], [1.0]], np.float32), 4, 4)
    np.testing.assert_array_equal(codes, [[[0 | (15 << 4), 8 | (9 << 4)]]])
    np.testing.assert_array_equal(scales, [1.0])


def test_int4_blocks_by_hand() -> None:
    """The peak 4 becomes -8 with a negative scale; a block of zeros has scale 1."""
    weight = np.array([[4.0, 0.0], [-3.5, 0.0], [-8.0, 0.0], [7.0, 0.0]], np.float32)
    codes, scales = int4_blocks(weight, 2)
    np.testing.assert_array_equal(codes, [[-8, 0], [7, 0], [-8, 0], [7, 0]])
    np.testing.assert_array_equal(scales, [[-0.5, 1.0], [1.0, 1.0]])


def test_int4_weights_outside_the_graph_file(tmp_path: Path) -> None:
    """External files hold two values a byte, as inside."""
    weight = RNG.normal(size=(128, 64)).astype(np.float32)
    results = []
    for external in (None, tmp_path / "linear.weights"):
        graph = GraphBuilder("linear", external, 24, qdq_block_linear(64))
        x = graph.input("x", TensorProto.FLOAT, [1, "S", 128])
        graph.output("y", graph.linear(x, "layer", weight), TensorProto.FLOAT, [1, "S", 64])
        graph.save(tmp_path / "linear.onnx")
        session = ort.InferenceSession(str(tmp_path / "linear.onnx"))
        results.append(session.run(None, {"x": np.ones((1, 2, 128), np.float32)})[0])
    np.testing.assert_array_equal(*results)
    assert (tmp_path / "linear.weights").stat().st_size >= 128 * 64 // 2


def test_activations_beyond_the_calibrated_range_saturate(tmp_path: Path) -> None:
    weight = np.eye(64, dtype=np.float32)
    y, rows = run(qdq_linear({"layer": np.ones(64, np.float32)}), weight, None, tmp_path)
    np.testing.assert_allclose(y, np.clip(rows, -128 / 127, 1.0), atol=0.5 / 127 + 1e-3)


def test_smoothing_evens_out_a_channel_of_outliers(tmp_path: Path) -> None:
    """One input a hundred times larger than the others costs them no resolution."""
    weight = RNG.normal(size=(64, 24)).astype(np.float32)
    weight[3] *= 0.01
    peaks = np.full(64, 4.0, np.float32)
    peaks[3] = 400.0
    np.testing.assert_allclose(smoothing(peaks, weight)[3], np.sqrt(400 / np.abs(weight[3]).max()))
    x = np.random.default_rng(1).normal(size=(1, 5, 64)).astype(np.float32)
    x[..., 3] *= 100
    graph = GraphBuilder("linear", linear_form=qdq_linear({"layer": peaks}))
    name = graph.input("x", TensorProto.FLOAT, [1, "S", 64])
    graph.output("y", graph.linear(name, "layer", weight), TensorProto.FLOAT, [1, "S", 24])
    graph.save(tmp_path / "linear.onnx")
    y = ort.InferenceSession(str(tmp_path / "linear.onnx")).run(None, {"x": x})[0]
    exact = x @ weight
    assert np.linalg.norm(y - exact) / np.linalg.norm(exact) < 0.03


def test_channels_that_are_never_used_keep_their_scale() -> None:
    factors = smoothing(np.array([0.0, 4.0], np.float32), np.array([[1.0], [0.0]], np.float32))
    np.testing.assert_array_equal(factors, [1.0, 1.0])


def test_sensitive_layers_stay_in_float(tmp_path: Path) -> None:
    y, rows = run(qdq_linear({}, ("lay",)), np.eye(64, dtype=np.float32), None, tmp_path)
    np.testing.assert_array_equal(y, rows)


def test_layer_without_a_range_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"'layer' was not calibrated"):
        run(qdq_linear({}), np.eye(4, dtype=np.float32), None, tmp_path)


def test_precision_of_another_dialect_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"int8-weights needs dialect ort-gqa, not prim18"):
        get_precision("int8-weights", "prim18")
    with pytest.raises(ConfigError, match=r"int4-weights needs dialect ort-gqa or std24, not pri"):
        get_precision("int4-weights", "prim18")
    with pytest.raises(ConfigError, match=r"'int3'.*fp32, fp16, int8"):
        get_precision("int3", "ort-gqa")
