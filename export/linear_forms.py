"""The forms a linear layer can be exported in: float, int8, blocks of n-bit weights.

``dynamic_int8_linear`` and ``block_linear`` use ONNX Runtime's operators; ``qdq_linear`` and
``qdq_block_linear`` the standard QuantizeLinear and DequantizeLinear, which TensorRT reads.

A form takes the value ``x`` (..., K), the weight (K, N) and the bias (N,), and returns x W + b.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from edge_atp.errors import ArtifactError

if TYPE_CHECKING:
    from export.graph import GraphBuilder

LinearForm = Callable[["GraphBuilder", str, str, NDArray[Any], "NDArray[Any] | None"], str]

_CONTRIB = "com.microsoft"
# int8 arithmetic inside MatMulNBits instead of float32.
_ACCURACY_LEVEL_INT8 = 4
# Largest int8 code; weights that meet 8-bit unsigned activations take half of it. x86 without VNNI
# adds two such products in 16 bits (vpmaddubsw): 2 * 255 * 64 = 32640 fits, 2 * 255 * 127 would be
# cut off at 32767, and the answers would depend on the processor.
_INT8_MAX, _INT8_MAX_REDUCED = 127, 64


def float_linear(
    graph: GraphBuilder, x: str, name: str, weight: NDArray[Any], bias: NDArray[Any] | None
) -> str:
    """Weights in the type they are stored in, arithmetic in float32."""
    y = graph.node("MatMul", x, graph.weight(f"{name}.weight", weight), name=name)
    if bias is None:
        return y
    return graph.node("Add", y, graph.weight(f"{name}.bias", bias), name=f"{name}/bias")


def half_linear(
    graph: GraphBuilder, x: str, name: str, weight: NDArray[Any], bias: NDArray[Any] | None
) -> str:
    """Product in float16 between casts; everything around it (norms, softmax) stays float32."""
    half = graph.node("Cast", x, name=f"{name}/to_f16", to=TensorProto.FLOAT16)
    stored = graph.raw_weight(f"{name}.weight", weight.astype(np.float16))
    y = graph.node("MatMul", half, stored, name=name)
    y = graph.node("Cast", y, name=f"{name}/to_f32", to=TensorProto.FLOAT)
    if bias is None:
        return y
    return graph.node("Add", y, graph.weight(f"{name}.bias", bias), name=f"{name}/bias")


def dynamic_int8_linear(
    graph: GraphBuilder, x: str, name: str, weight: NDArray[Any], bias: NDArray[Any] | None
) -> str:
    """7-bit weights per output channel; activations quantised at run time per tensor, to uint8.

    Source: "reduce_range" of ONNX Runtime's quantiser, for the reason at ``_INT8_MAX_REDUCED``.
    """
    quantised, scale = int8_per_channel(weight, _INT8_MAX_REDUCED)
    inputs = [
        x,
        graph.raw_weight(f"{name}.weight_int8", quantised),
        graph.weight(f"{name}.weight_scale", scale),
        "",
    ]
    if bias is not None:
        inputs.append(graph.weight(f"{name}.bias", bias.astype(np.float32)))
    return graph.node("DynamicQuantizeMatMul", *inputs, domain=_CONTRIB, name=name)


def qdq_linear(
    ranges: Mapping[str, NDArray[np.float32]], keep_float: tuple[str, ...] = ()
) -> LinearForm:
    """int8 per output channel and calibrated int8 activations per tensor, as Q/DQ pairs.

    Zero points are 0, as TensorRT demands. Before rounding, part of the spread between input
    channels moves from the activations into the weights.

    Args:
        ranges: (K,) largest magnitude of each input channel, by the layer's name.
        keep_float: layers whose name starts so are written in float.
    Source: SmoothQuant (Xiao et al. 2023), eq. 4 with alpha 0.5.
    """

    def emit(
        graph: GraphBuilder, x: str, name: str, weight: NDArray[Any], bias: NDArray[Any] | None
    ) -> str:
        if keep_float and name.startswith(keep_float):
            return float_linear(graph, x, name, weight, bias)
        if name not in ranges:
            raise ArtifactError(f"linear layer {name!r} was not calibrated; export again")
        smooth = smoothing(ranges[name], weight)
        quantised, scale = int8_per_channel(weight.astype(np.float32) * smooth[:, None])
        peak = float((ranges[name] / smooth).max())
        step = graph.weight(f"{name}.input_scale", np.array(max(peak, 1e-6) / 127, np.float32))
        zero = graph.constant(np.array(0, np.int8))
        x = graph.node("Mul", x, graph.weight(f"{name}.smooth", 1 / smooth), name=f"{name}/smooth")
        x = graph.node("QuantizeLinear", x, step, zero, name=f"{name}/quantise")
        x = graph.node("DequantizeLinear", x, step, zero, name=f"{name}/dequantise")
        unpacked = graph.node(
            "DequantizeLinear",
            graph.raw_weight(f"{name}.weight_int8", quantised),
            graph.weight(f"{name}.weight_scale", scale),
            graph.constant(np.zeros(scale.shape, np.int8)),
            name=f"{name}/weight",
            axis=1,
        )
        y = graph.node("MatMul", x, unpacked, name=name)
        if bias is None:
            return y
        return graph.node("Add", y, graph.weight(f"{name}.bias", bias), name=f"{name}/bias")

    return emit


def smoothing(peaks: NDArray[np.float32], weight: NDArray[Any]) -> NDArray[np.float32]:
    """What each input channel is divided by, and its row of the weight multiplied with.

    Args:
        peaks: (K,) largest magnitude of each input channel.
        weight: (K, N).
    Returns:
        (K,) positive; 1 for channels that are always zero on either side.
    """
    rows = np.abs(weight.astype(np.float32)).max(axis=1)
    used = (peaks > 0) & (rows > 0)
    ratio = np.divide(peaks, rows, out=np.ones_like(rows), where=used)
    factor: NDArray[np.float32] = np.sqrt(ratio).astype(np.float32)
    return factor


def qdq_block_linear(block_size: int = 64) -> LinearForm:
    """int4 weights in blocks of inputs with one scale each, arithmetic in float; opset 21.

    TensorRT fuses blocks of 64 and 128. Widths that are no multiple of the block stay in float.
    """

    def emit(
        graph: GraphBuilder, x: str, name: str, weight: NDArray[Any], bias: NDArray[Any] | None
    ) -> str:
        if weight.shape[0] % block_size:
            return float_linear(graph, x, name, weight, bias)
        codes, scales = int4_blocks(weight, block_size)
        unpacked = graph.node(
            "DequantizeLinear",
            graph.int4_weight(f"{name}.weight_int4", codes),
            graph.weight(f"{name}.weight_scales", scales),
            name=f"{name}/weight",
            axis=0,
            block_size=block_size,
        )
        y = graph.node("MatMul", x, unpacked, name=name)
        if bias is None:
            return y
        return graph.node("Add", y, graph.weight(f"{name}.bias", bias), name=f"{name}/bias")

    return emit


def int4_blocks(
    weight: NDArray[Any], block_size: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int4 with one scale per block of inputs.

    The value of largest magnitude in a block becomes -8, which uses the whole code range; the
    scale is negative where that value is positive.

    Args:
        weight: (K, N), K a multiple of the block size.
    Returns:
        (K, N) codes in [-8, 7] and (K / block_size, N) scales.
    """
    inputs, outputs = weight.shape
    groups = weight.astype(np.float32).reshape(inputs // block_size, block_size, outputs)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(1)[:, None], 1)
    scale = np.where(largest != 0, largest / -8, 1).astype(np.float32)
    codes = np.clip(np.round(groups / scale), -8, 7).astype(np.int8)
    return codes.reshape(inputs, outputs), scale[:, 0]


def block_linear(bits: int, block_size: int = 32) -> LinearForm:
    """Weights in ``bits`` bits with one scale per block of inputs, int8 arithmetic."""

    def emit(
        graph: GraphBuilder, x: str, name: str, weight: NDArray[Any], bias: NDArray[Any] | None
    ) -> str:
        packed, scales = pack_blocks(weight, bits, block_size)
        y = graph.node(
            "MatMulNBits",
            x,
            graph.raw_weight(f"{name}.weight_int{bits}", packed),
            graph.weight(f"{name}.weight_scales", scales),
            domain=_CONTRIB,
            name=name,
            K=weight.shape[0],
            N=weight.shape[1],
            bits=bits,
            block_size=block_size,
            accuracy_level=_ACCURACY_LEVEL_INT8,
        )
        if bias is None:
            return y
        return graph.node("Add", y, graph.weight(f"{name}.bias", bias), name=f"{name}/bias")

    return emit


def int8_per_channel(
    weight: NDArray[Any], largest: int = _INT8_MAX
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 per output channel.

    Args:
        weight: (K, N).
        largest: code of a channel's largest magnitude.
    Returns:
        (K, N) int8 in [-largest, largest] and (N,) scales; a zero channel has scale 1.
    """
    values = weight.astype(np.float32)
    peak = np.abs(values).max(axis=0)
    scale = np.where(peak > 0, peak / largest, 1).astype(np.float32)
    return np.round(values / scale).astype(np.int8), scale


def pack_blocks(
    weight: NDArray[Any], bits: int, block_size: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Weights as MatMulNBits stores them.

    The value of largest magnitude in a block becomes the most negative code, which uses the whole
    code range. Two 4-bit codes share a byte, the first in the low half.

    Args:
        weight: (K, N).
        bits: 4 or 8.
    Returns:
        (N, blocks, block_size * bits / 8) codes and (N * blocks,) scales.
    """
    inputs, outputs = weight.shape
    blocks = -(-inputs // block_size)
    padded = np.zeros((outputs, blocks * block_size), np.float32)
    padded[:, :inputs] = weight.T
    groups = padded.reshape(outputs, blocks, block_size)
    zero_point = 1 << (bits - 1)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)
    scale = np.where(largest != 0, largest / -zero_point, 1).astype(np.float32)
    top = (1 << bits) - 1
    codes = np.clip(np.round(groups / scale) + zero_point, 0, top).astype(np.uint8)
    if bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))
    return codes, scale.reshape(-1)
