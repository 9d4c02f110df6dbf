"""The forms a linear layer can be exported in: float, dynamic int8, blocks of n-bit weights.

A form takes the value ``x`` (..., K), the weight (K, N) and the bias (N,), and returns x W + b.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

if TYPE_CHECKING:
    from export.graph import GraphBuilder

LinearForm = Callable[["GraphBuilder", str, str, NDArray[Any], "NDArray[Any] | None"], str]

_CONTRIB = "com.microsoft"
# int8 arithmetic inside MatMulNBits instead of float32.
_ACCURACY_LEVEL_INT8 = 4


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
    """int8 weights per output channel; activations quantised at run time per tensor."""
    quantised, scale = int8_per_channel(weight)
    inputs = [
        x,
        graph.raw_weight(f"{name}.weight_int8", quantised),
        graph.weight(f"{name}.weight_scale", scale),
        "",
    ]
    if bias is not None:
        inputs.append(graph.weight(f"{name}.bias", bias.astype(np.float32)))
    return graph.node("DynamicQuantizeMatMul", *inputs, domain=_CONTRIB, name=name)


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


def int8_per_channel(weight: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 per output channel.

    Args:
        weight: (K, N).
    Returns:
        (K, N) int8 and (N,) scales; a zero channel has scale 1.
    """
    values = weight.astype(np.float32)
    peak = np.abs(values).max(axis=0)
    scale = np.where(peak > 0, peak / 127, 1).astype(np.float32)
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
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return codes, scale.reshape(-1)
