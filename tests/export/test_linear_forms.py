"""Quantised linear layers: what is stored, and what ONNX Runtime makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto

from edge_atp.errors import ConfigError
from export.graph import GraphBuilder
from export.linear_forms import (
    LinearForm,
    block_linear,
    dynamic_int8_linear,
    float_linear,
    half_linear,
    int8_per_channel,
    pack_blocks,
)
from export.precision import get_precision

RNG = np.random.default_rng(0)


def run(
    form: LinearForm, weight: np.ndarray, bias: np.ndarray | None, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    graph = GraphBuilder("linear", linear_form=form)
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
    ],
)
@pytest.mark.parametrize("inputs", [64, 80])
@pytest.mark.parametrize("with_bias", [True, False])
def test_form_is_close_to_float(
    form: LinearForm, tolerance: float, inputs: int, with_bias: bool, tmp_path: Path
) -> None:
    """Also where the input width is no multiple of the block size."""
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


def test_four_bit_codes_by_hand() -> None:
    """One block of four inputs: the peak -8 sets scale 1, codes are value + 8, low half first."""
    codes, scales = pack_blocks(np.array([[-8.0], [7.0], [0.0], [1.0]], np.float32), 4, 4)
    np.testing.assert_array_equal(codes, [[[0 | (15 << 4), 8 | (9 << 4)]]])
    np.testing.assert_array_equal(scales, [1.0])


def test_precision_of_another_dialect_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"int8 needs dialect ort-gqa, not prim18"):
        get_precision("int8", "prim18")
    with pytest.raises(ConfigError, match=r"'int3'.*fp32, fp16, int8"):
        get_precision("int3", "ort-gqa")
