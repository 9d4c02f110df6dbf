"""What TensorRT's tables demand of an operator beyond its name: fixed inputs, ranks, attributes.

Sources are those of ``support.py``. A rank or type that shape inference cannot tell is not
complained about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto


@dataclass(frozen=True)
class Context:
    """What a restriction may look at besides the node.

    weights: initialisers by name.
    types: element type and rank of every tensor for which they are known.
    """

    weights: Mapping[str, TensorProto]
    types: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Context:
        """Read a model; tensors inside it are typed by ONNX's shape inference."""
        graph = onnx.shape_inference.infer_shapes(model).graph
        types = {tensor.name: (tensor.data_type, len(tensor.dims)) for tensor in graph.initializer}
        for value in (*graph.input, *graph.value_info, *graph.output):
            tensor_type = value.type.tensor_type
            if tensor_type.HasField("shape"):
                types[value.name] = (tensor_type.elem_type, len(tensor_type.shape.dim))
        return cls({tensor.name: tensor for tensor in graph.initializer}, types)


Restriction = Callable[[onnx.NodeProto, Context], "str | None"]


def restrictions(
    *, slice_axes: bool, squeeze_all: bool, quantised: frozenset[int]
) -> dict[str, Restriction]:
    """The checks of one parser version, by operator; arguments as in ``ParserVersion``."""
    axes = _fixed_input(1, "axes")
    checks: dict[str, Restriction] = {
        "Squeeze": _squeeze(squeeze_all),
        "Unsqueeze": axes,
        "ReduceL2": axes,
        "ReduceMax": axes,
        "ReduceMean": axes,
        "ReduceMin": axes,
        "ReduceSum": axes,
        "TopK": _topk,
        "LayerNormalization": _layer_norm,
        "QuantizeLinear": _zero_point,
        "DequantizeLinear": _dequantize(quantised),
        "Attention": _attention,
        "RotaryEmbedding": _rotary,
        "TensorScatter": _tensor_scatter,
    }
    if not slice_axes:
        checks["Slice"] = _fixed_input(3, "axes")
    return checks


def _fixed_input(index: int, label: str) -> Restriction:
    def check(node: onnx.NodeProto, context: Context) -> str | None:
        if _has(node, index) and node.input[index] not in context.weights:
            return f"{label} of {node.op_type} must be an initialiser"
        return None

    return check


def _squeeze(axes_optional: bool) -> Restriction:
    fixed = _fixed_input(1, "axes")

    def check(node: onnx.NodeProto, context: Context) -> str | None:
        if not axes_optional and not _has(node, 1):
            return "Squeeze must name its axes"
        return fixed(node, context)

    return check


def _topk(node: onnx.NodeProto, _context: Context) -> str | None:
    return None if _attribute(node, "sorted", 1) == 1 else "TopK must be sorted"


def _layer_norm(node: onnx.NodeProto, _context: Context) -> str | None:
    return "only the first output of LayerNormalization exists" if len(node.output) > 1 else None


def _zero_point(node: onnx.NodeProto, context: Context) -> str | None:
    if not _has(node, 2):
        return None
    tensor = context.weights.get(node.input[2])
    if tensor is None or onnx.numpy_helper.to_array(tensor).any():
        return f"the zero point of {node.op_type} must be 0"
    return None


def _dequantize(quantised: frozenset[int]) -> Restriction:
    def check(node: onnx.NodeProto, context: Context) -> str | None:
        kind, _ = context.types.get(node.input[0], (None, 0))
        if kind is not None and kind not in quantised:
            return f"DequantizeLinear of {TensorProto.DataType.Name(kind)} is not supported"
        return _zero_point(node, context)

    return check


def _attention(node: onnx.NodeProto, context: Context) -> str | None:
    if any(_has(node, index) for index in range(4, len(node.input))) or len(node.output) > 1:
        return "Attention takes queries, keys, values and mask alone, and has one output"
    extra = {a.name for a in node.attribute} & {"softcap", "qk_matmul_output_mode"}
    if extra:
        return f"attribute {extra.pop()} of Attention is not supported"
    return _four_dimensions(node, context, ("queries", "keys", "values", "mask"))


def _rotary(node: onnx.NodeProto, context: Context) -> str | None:
    if not _has(node, 3):
        return None
    kind, _ = context.types.get(node.input[3], (TensorProto.INT64, 0))
    return None if kind == TensorProto.INT64 else "position_ids of RotaryEmbedding must be INT64"


def _tensor_scatter(node: onnx.NodeProto, context: Context) -> str | None:
    if _attribute(node, "axis", -2) != -2:
        return "axis of TensorScatter must be -2"
    return _four_dimensions(node, context, ("past_cache", "update"))


def _four_dimensions(node: onnx.NodeProto, context: Context, labels: tuple[str, ...]) -> str | None:
    for index, label in enumerate(labels):
        if not _has(node, index):
            continue
        _, rank = context.types.get(node.input[index], (0, 4))
        if rank != 4:
            return f"{label} of {node.op_type} must have 4 dimensions, not {rank}"
    return None


def _has(node: onnx.NodeProto, index: int) -> bool:
    return len(node.input) > index and bool(node.input[index])


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)
